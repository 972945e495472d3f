"""Verification sets are built from pair lists and taken apart again, by functions and by the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.pair_cases import LFW, write
from helpers.places import FACES, ROOT
from partialkd.commands.make_bin import main
from partialkd.config import ArchiveConfig, DataConfig
from partialkd.data.formats.pair_lists import read_pair_list
from partialkd.data.formats.verification_bin import read_bin, write_bin
from partialkd.data.images.decode import decode
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.packing.prepare import prepare
from partialkd.data.packing.verification_sets import build_bin, extract_bin
from partialkd.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ann/1.jpg ... Dee/3.jpg of 16 x 16 pixels, all different."""
    rng = np.random.RandomState(0)
    for name in ("Ann", "Bob", "Cay", "Dee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in (1, 2, 3, 12):
            pixels = rng.randint(0, 256, (16, 16, 3)).astype(np.uint8)
            (tmp_path / "images" / name / f"{number}.jpg").write_bytes(encode_jpeg(pixels))
    return tmp_path / "images"


NAMES = "{name}/{number}.jpg"


def test_built_set_holds_the_files_bytes(tmp_path: Path, images: Path) -> None:
    pairs = read_pair_list("lfw", write(tmp_path, LFW), NAMES)
    assert build_bin(pairs, images, tmp_path / "lfw.bin", 16) == 8
    got = read_bin(tmp_path / "lfw.bin")
    assert got.same.tolist() == [True, True, False, False] * 2
    expected = [(images / path).read_bytes() for pair in pairs for path in (pair.first, pair.second)]
    assert list(got.images) == expected


def test_taken_apart_and_built_again_it_is_the_same_file(tmp_path: Path, images: Path) -> None:
    build_bin(read_pair_list("lfw", write(tmp_path, LFW), NAMES), images, tmp_path / "lfw.bin", 16)
    assert extract_bin(tmp_path / "lfw.bin", tmp_path / "apart") == (9, 8)
    again = read_pair_list("csv", tmp_path / "apart" / "pairs.csv")
    build_bin(again, tmp_path / "apart", tmp_path / "again.bin", 16)
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "lfw.bin").read_bytes()
    assert (tmp_path / "apart" / "images" / "00.jpg").read_bytes() == (images / "Ann" / "1.jpg").read_bytes()


def test_a_set_of_equal_images_and_repeated_pairs_is_built_again_too(tmp_path: Path, images: Path) -> None:
    """No image with itself, and no pair twice, in the list that is written; no image more often than that needs."""
    a, b, c = ((images / name).read_bytes() for name in ("Ann/1.jpg", "Bob/1.jpg", "Cay/1.jpg"))
    pairs = [(a, a), (a, b), (b, a), (a, a), (c, b), (c, c), (b, b), (a, b)]
    same = [True, False, False, True, False, True, True, True]  # one has two answers
    write_bin(tmp_path / "odd.bin", [image for pair in pairs for image in pair], same)
    assert extract_bin(tmp_path / "odd.bin", tmp_path / "apart") == (9, 8)  # a, b, c and six copies
    again = read_pair_list("csv", tmp_path / "apart" / "pairs.csv")
    assert build_bin(again, tmp_path / "apart", tmp_path / "again.bin", 16) == 8
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "odd.bin").read_bytes()


def test_size_is_checked_or_made(tmp_path: Path, images: Path) -> None:
    pairs = read_pair_list("lfw", write(tmp_path, LFW), NAMES)
    with pytest.raises(
        DataError, match=r"images/\w+/\d+\.jpg: must be 24 x 24 pixels \(--resize brings .* got 16 x 16"
    ):
        build_bin(pairs, images, tmp_path / "a.bin", 24)
    assert not (tmp_path / "a.bin").exists()
    build_bin(pairs, images, tmp_path / "a.bin", 24, resize=True)
    assert {decode(image, "").shape for image in read_bin(tmp_path / "a.bin").images} == {(24, 24, 3)}
    build_bin(pairs, images, tmp_path / "any.bin", None)


def test_missing_and_broken_images(tmp_path: Path, images: Path) -> None:
    pairs = read_pair_list("lfw", write(tmp_path, LFW), NAMES)
    (images / "Dee" / "12.jpg").write_bytes(b"\xff\xd8 not a photograph")
    with pytest.raises(DataError, match=r"images/Dee/12\.jpg: broken JPEG"):
        build_bin(pairs, images, tmp_path / "a.bin", 16)
    (images / "Dee" / "12.jpg").unlink()
    with pytest.raises(DataError, match=r"pairs\.txt: line 7: no image Dee/12\.jpg in .*images"):
        build_bin(pairs, images, tmp_path / "a.bin", 16)
    assert not (tmp_path / "a.bin").exists()


def test_nothing_is_overwritten_or_half_written(tmp_path: Path, images: Path) -> None:
    write_bin(tmp_path / "odd.bin", [b"GIF89a", (images / "Ann" / "1.jpg").read_bytes()], [True])
    with pytest.raises(DataError, match=r"odd\.bin: image 0: not a known image format \(starts with b'GIF89a'\)"):
        extract_bin(tmp_path / "odd.bin", tmp_path / "apart")
    with pytest.raises(DataError, match="already exists"):
        extract_bin(tmp_path / "odd.bin", images)
    pairs = read_pair_list("lfw", write(tmp_path, LFW), NAMES)
    with pytest.raises(DataError, match="already exists"):
        build_bin(pairs, images, tmp_path / "odd.bin", 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "odd.bin", "pairs.txt"]


@pytest.mark.slow
def test_command(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["build", "lfw", str(write(tmp_path, LFW)), str(images), str(tmp_path / "lfw.bin"), "--image-size", "16"]
    assert main(build) == 1
    assert "line 2: no image Ann/Ann_0001.jpg" in capsys.readouterr().err
    assert main([*build, "--names", NAMES]) == 0
    assert "lfw.bin: 8 pairs, 4 of one person" in capsys.readouterr().out
    script = ROOT / "launch" / "make_bin.py"
    arguments = [sys.executable, script, "extract", tmp_path / "lfw.bin", tmp_path / "apart"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'apart'}: 9 images, 8 pairs in pairs.csv\n")


@pytest.mark.faces
@pytest.mark.slow
def test_real_lfw_is_what_preparation_makes(tmp_path: Path) -> None:
    """pairs.txt in LFW's own form, written from the CSV, gives the set that `data.prepare` makes from the CSV."""
    folder = FACES
    if not (folder / "lfw112.tar.gz").exists():
        pytest.skip(f"no real faces in {folder} (PARTIALKD_FACES)")
    archive, table = folder / "lfw112.tar.gz", folder / "lfw_pairs.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    text = "10\t300\n"
    for first, second, same in rows:
        (one, i), (two, j) = (path.removesuffix(".jpg").split("/") for path in (first, second))
        text += f"{one}\t{int(i)}\t{int(j)}\n" if same == "1" else f"{one}\t{int(i)}\t{two}\t{int(j)}\n"
    pairs = read_pair_list("lfw", write(tmp_path, text), "{name}/{number:04d}.jpg")
    assert len(pairs) == 6000
    build_bin(pairs, archive, tmp_path / "lfw.bin")
    images = tmp_path / "training" / "nobody"
    images.mkdir(parents=True)
    (images / "0.jpg").write_bytes(read_bin(tmp_path / "lfw.bin").images[0])
    settings = {"images": str(images.parent), "pairs_images": str(archive), "pairs": str(table)}
    prepare(DataConfig(path=str(tmp_path / "made"), prepare=ArchiveConfig(kind="archive", **settings)))
    assert (tmp_path / "lfw.bin").read_bytes() == (tmp_path / "made" / "lfw_pairs.bin").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("build", "csv", "none.csv", "images", "a.bin"), "none.csv: cannot be read: No such file or directory"),
        (("build", "csv", "pairs.csv", "none", "a.bin"), "none: cannot be read: No such file or directory"),
        (("build", "csv", "pairs.csv", "images", "file/a.bin"), "file: File exists"),
        (("build", "csv", "pairs.csv", "images", f"{'a' * 300}.bin"), "File name too long"),
        (("build", "csv", "pipes.csv", "images", "a.bin"), "pipes.csv: line 2: no image pipe in "),
        (("extract", "none.bin", "out"), "none.bin: cannot be read: No such file or directory"),
        (("extract", "images", "out"), "images: cannot be read: Is a directory"),
        (("extract", "a.bin", "file/out"), "file/out: cannot be written: File exists"),
    ],
)
def test_the_command_says_one_line(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "pairs.csv").write_text("a,b,same\nAnn/1.jpg,Ann/2.jpg,1\n")
    (tmp_path / "pipes.csv").write_text("a,b,same\nAnn/1.jpg,pipe,1\n")
    os.mkfifo(images / "pipe")
    if arguments[0] == "extract":
        image = (images / "Ann" / "1.jpg").read_bytes()
        write_bin(tmp_path / "a.bin", [image, image], [True])
    before = sorted(tmp_path.rglob("*"))
    kept = 2 if arguments[0] == "build" else 1
    size = ["--image-size", "16"] if arguments[0] == "build" else []
    assert main([*arguments[:kept], *(str(tmp_path / one) for one in arguments[kept:]), *size]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert says in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("size", ["0", "-5", "1000000000"])
def test_sizes_have_bounds(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    (tmp_path / "pairs.csv").write_text("a,b,same\nAnn/1.jpg,Ann/2.jpg,1\n")
    arguments = [str(tmp_path / "pairs.csv"), str(images), str(tmp_path / "a.bin"), "--image-size", size, "--resize"]
    assert main(["build", "csv", *arguments]) == 1
    assert capsys.readouterr().err == f"error: --image-size must be in 16..512, got {size}\n"
