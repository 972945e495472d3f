"""Verification sets kept as arrays of pixels, of every kind: the pixels that went in come out of the .bin."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from partialkd.commands.make_bin import main
from partialkd.data.formats.verification_bin import read_bin
from partialkd.data.images.decode import decode
from partialkd.data.packing.verification_sets import build_from_pixels
from partialkd.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16), dtype=np.uint8)  # RGB
FLOATS = ((PIXELS[:, ::-1] / np.float32(255) - 0.5) / 0.5).astype(np.float32)  # as torchvision's ToTensor, Normalize
MAP = "memfile/mem_file.dat"
SAME = np.array([True, False, True])


def save(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
    return path


def memory_map(folder: Path, values: np.ndarray) -> Path:
    (folder / "memfile").mkdir(parents=True)
    values.tofile(folder / "memfile" / "mem_file.dat")
    said = {"shape": list(values.shape), "dtype": str(values.dtype)}
    (folder / "memfile" / "mem_file.dat.conf").write_text(json.dumps(said))
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "uint8": lambda place: save(place / "lfw.npy", PIXELS),
    "in a folder": lambda place: save(place / "lfw" / "lfw.npy", PIXELS).parent,
    "rows, columns, colours": lambda place: save(place / "lfw.npy", np.moveaxis(PIXELS, 1, 3)),
    "floats": lambda place: save(place / "lfw.npy", FLOATS),
    "half floats": lambda place: save(place / "lfw.npy", FLOATS.astype(np.float64)),
    "memory map": lambda place: memory_map(place / "lfw", FLOATS),
    "memory map by name": lambda place: memory_map(place / "lfw", FLOATS) / "memfile" / "mem_file.dat",
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_come_out_as_they_went_in(kind: str, tmp_path: Path) -> None:
    answers = save(tmp_path / "lfw_list.npy", SAME)
    assert build_from_pixels(answers, KINDS[kind](tmp_path / "val"), tmp_path / "lfw.bin") == 3
    found = read_bin(tmp_path / "lfw.bin")
    images = np.stack([np.moveaxis(decode(image, ""), 2, 0) for image in found.images])
    np.testing.assert_array_equal(images, PIXELS)
    np.testing.assert_array_equal(found.same, SAME)


@pytest.mark.parametrize("text", ["1\n0\n1\n", "True\nFalse\nTrue"])
def test_the_command(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "issame.txt").write_text(text)
    save(tmp_path / "lfw.npy", PIXELS[:, ::-1])
    words = ["build", "npy", str(tmp_path / "issame.txt"), str(tmp_path / "lfw.npy"), str(tmp_path / "lfw.bin")]
    assert main([*words, "--colour", "bgr"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/lfw.bin: 3 pairs\n"
    np.testing.assert_array_equal(decode(read_bin(tmp_path / "lfw.bin").images[4], ""), np.moveaxis(PIXELS[4], 0, 2))
    assert main(words) == 1
    assert "lfw.bin: already exists" in capsys.readouterr().err


def bcolz(place: Path) -> Path:
    (place / "lfw" / "meta").mkdir(parents=True)
    (place / "lfw" / "meta" / "sizes").write_text('{"shape": [6, 3, 16, 16]}')
    return place / "lfw"


def spoilt(make: Callable[[Path], Path], name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def spoil(place: Path) -> Path:
        path = make(place)
        file = path / name if name else path
        file.write_bytes(change(file.read_bytes()))
        return path

    return spoil


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "bcolz": (bcolz, r"lfw: is a folder of bcolz, which is not read; .*numpy\.save\('lfw\.npy', bcolz\.carray"),
    "objects": (lambda p: save(p / "lfw.npy", np.array([{}, 1], object)), r"lfw\.npy: not a \.npy of numbers"),
    "pickle": (spoilt(KINDS["uint8"], "", lambda _: pickle.dumps([1])), r"lfw\.npy: not a \.npy of numbers"),
    "cut": (spoilt(KINDS["uint8"], "", lambda b: b[:-9]), r"lfw\.npy: not a \.npy of numbers"),
    "empty file": (spoilt(KINDS["uint8"], "", lambda _: b""), r"lfw\.npy: not a \.npy of numbers"),
    "0 to 1": (lambda p: save(p / "lfw.npy", PIXELS / 255.1), r"image 0: floats must be pixels brought to -1 \.\.\. 1"),
    "0 to 255": (lambda p: save(p / "lfw.npy", PIXELS.astype(np.float32)), r"image 0: floats must be .*got 0 to 25\d"),
    "not a number": (lambda p: save(p / "lfw.npy", FLOATS * np.nan), r"image 0: floats must be .*, got nan to nan"),
    "int64": (lambda p: save(p / "lfw.npy", PIXELS.astype(np.int64)), r"must hold pixels in uint8, or floats"),
    "embeddings": (lambda p: save(p / "lfw.npy", FLOATS[:, 0, 0]), r"must hold images \(2n, 3, H, W\), got \(6, 16\)"),
    "another number": (lambda p: save(p / "lfw.npy", PIXELS[:4]), r"holds 4 images, .*list\.npy answers for 3 pairs"),
    "map cut": (spoilt(KINDS["memory map"], MAP, lambda b: b[:-4]), r"has \d+ bytes, but mem_file\.dat\.conf says"),
    "map of objects": (spoilt(KINDS["memory map"], f"{MAP}.conf", lambda b: b.replace(b"float32", b"object")), r"says"),
    "no JSON": (spoilt(KINDS["memory map"], f"{MAP}.conf", lambda b: b[:9]), r"must say shape and dtype as JSON"),
    "gone": (lambda p: p / "lfw.npy", r"lfw\.npy: cannot be read: No such file"),
    "two arrays": (lambda p: save(save(p / "a.npy", PIXELS).with_name("b.npy"), PIXELS).parent, r"holds 2 \.npy"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_set_that_is_wrong_is_named(what: str, tmp_path: Path) -> None:
    make, says = WRONG[what]
    with pytest.raises(DataError) as caught:
        build_from_pixels(save(tmp_path / "list.npy", SAME), make(tmp_path / "val"), tmp_path / "lfw.bin")
    assert re.search(says, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*lfw.bin*"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("issame.txt", b"1\n2\n", r"issame\.txt: line 2: must be 0 or 1, got '2'"),
        ("list.npy", np.array([0, 2]), r"list\.npy: must hold \(n,\) truths"),
        ("list.npy", np.array([[0, 1]]), r"list\.npy: must hold \(n,\) truths, got \(1, 2\)"),
        ("list.npy", np.array([None]), r"list\.npy: not a \.npy of numbers"),
    ],
)
def test_answers_that_are_wrong(name: str, content: Any, says: str, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        save(tmp_path / name, content)
    with pytest.raises(DataError, match=says):
        build_from_pixels(tmp_path / name, save(tmp_path / "lfw.npy", PIXELS), tmp_path / "lfw.bin")
