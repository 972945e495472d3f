"""Packing: what is written is InsightFace's layout (read back by DALI and by its rules), nothing is lost."""

from __future__ import annotations

import io
import runpy
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.packing_cases import as_png, jpegs, make_folder, packed
from helpers.places import ROOT
from partialkd.data.formats import insightface_folder as layout
from partialkd.data.formats.insightface_folder import pack_records, read_names
from partialkd.data.formats.recordio import RecordReader
from partialkd.data.images.decode import decode
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.packing.pack import PackError, PackOptions, pack, unpack
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.errors import ConfigError, DataError

LAUNCH = ROOT / "launch" / "pack.py"


# -------------------------------------------------------------------------------------------------- layout


class InsightFaceReader:
    """The rules of arcface_torch's MXFaceDataset, on plain file reads (no record here is split)."""

    def __init__(self, folder: Path) -> None:
        self.data = (folder / "train.rec").read_bytes()
        lines = (folder / "train.idx").read_text().splitlines()
        self.offsets = {int(key): int(offset) for key, offset in (line.split("\t") for line in lines)}
        flag, label, _ = self.record(0)
        self.header = (int(label[0]), int(label[1])) if flag > 0 else None
        self.keys = list(range(1, self.header[0])) if self.header else list(self.offsets)

    def record(self, key: int) -> tuple[int, tuple[float, ...], bytes]:
        at = self.offsets[key]
        magic, length = struct.unpack_from("<II", self.data, at)
        assert magic == 0xCED7230A
        flag, label, _, _ = struct.unpack_from("<IfQQ", self.data, at + 8)
        labels = struct.unpack_from(f"<{flag}f", self.data, at + 32) if flag else (label,)
        return flag, labels, self.data[at + 32 + 4 * flag : at + 8 + length]


def test_layout_is_insightfaces(tmp_path: Path) -> None:
    images = jpegs(10, classes=4)
    assert pack_records(tmp_path, images, 5, 32, list("abcde")) == 10  # the last class has no image
    reader = InsightFaceReader(tmp_path)
    assert reader.header == (11, 16)
    assert [(image, int(label[0])) for _, label, image in map(reader.record, reader.keys)] == images
    counts = np.bincount([label for _, label in images], minlength=5)
    for label in range(5):
        flag, (start, end), image = reader.record(11 + label)
        assert (flag, image, end - start) == (2, b"", counts[label])
        assert all(reader.record(key)[1] == (label,) for key in range(int(start), int(end)))
    assert (tmp_path / "property").read_text() == "5,32,32\n"
    assert read_names(tmp_path / "identities.txt", 5) == list("abcde")
    assert packed(tmp_path) == images


def test_set_too_large_for_float32_counts_has_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "FLOAT_EXACT", 12)
    pack_records(tmp_path / "small", jpegs(8), 3, 32)
    pack_records(tmp_path / "large", jpegs(10), 3, 32)
    assert InsightFaceReader(tmp_path / "small").header == (9, 12)
    large = InsightFaceReader(tmp_path / "large")
    assert large.header is None
    assert large.keys == list(range(10))
    assert packed(tmp_path / "large") == jpegs(10)


def _dali_images(folder: Path, index: Path, count: int) -> list[tuple[np.ndarray, float]]:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=count, num_threads=1, device_id=None)
    def pipeline() -> tuple:
        encoded, label = fn.readers.mxnet(path=[str(folder / "train.rec")], index_path=[str(index)])
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB), label

    pipe = pipeline()
    pipe.build()
    images, labels = pipe.run()
    return [(np.array(images.at(k)), float(np.array(labels.at(k)).ravel()[0])) for k in range(count)]


def test_dali_reads_the_same_images_and_labels(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    images = jpegs(6)
    magic = struct.pack("<I", 0xCED7230A)
    images[2] = (images[2][0] + bytes(-len(images[2][0]) % 4) + magic + b"split record", images[2][1])
    pack_records(tmp_path, images, 3, 32)
    reader = RecordReader(tmp_path / "train.rec", tmp_path / "train.idx")
    index = tmp_path / "images.idx"
    index.write_text("".join(f"{reader.keys[k]}\t{reader.offsets[k]}\n" for k in range(1, 7)))
    for (pixels, label), (image, expected) in zip(_dali_images(tmp_path, index, 6), images, strict=True):
        assert label == expected
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(image))))


@pytest.mark.parametrize(
    ("images", "classes", "names", "message"),
    [
        ([(b"x", 1), (b"y", 0)], 2, None, "image 2: class ids must ascend and be below 2, got 0 after 1"),
        ([(b"x", 2)], 2, None, "image 1: class ids must ascend and be below 2, got 2"),
        ([(b"x", -1)], 2, None, "image 1: class ids must ascend"),
        ([(b"x", 0), (b"", 1)], 2, None, "image 2 of class 1 is empty"),
        ([], 2, None, "no image to write"),
        ([(b"x", 0)], 0, None, r"number of classes must be in 1\.\.16777216"),
        ([(b"x", 0)], 1 << 25, None, r"number of classes must be in 1\.\.16777216"),
        ([(b"x", 0)], 2, ["a"], "2 classes need as many identity names, got 1"),
        ([(b"x", 0)], 2, ["a", "a"], "identity name 'a' occurs more than once"),
        ([(b"x", 0)], 2, ["a", ".."], r"class 1: identity name must be usable as a folder's name, got '\.\.'"),
        ([(b"x", 0)], 2, ["a", "b/c"], "class 1: identity name"),
    ],
)
def test_wrong_input_writes_nothing(
    tmp_path: Path, images: list, classes: int, names: list[str] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        pack_records(tmp_path, iter(images), classes, 32, names)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train.rec", "train.idx", "property", "identities.txt"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match=rf"{name}: already exists; nothing is overwritten"):
        pack_records(tmp_path, jpegs(3), 3, 32)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("text", ["0\ta\n", "0\ta\n2\tb\n", "0\ta\n1 b\n", "0\ta\n1\t\n", "0\ta\n1\ta\n"])
def test_wrong_names_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "identities.txt").write_text(text)
    with pytest.raises(DataError, match=r"line 2|identity name"):
        read_names(tmp_path / "identities.txt", 2)


# ------------------------------------------------------------------------------------------------- packing


def test_folder_keeps_its_bytes_there_and_back(tmp_path: Path) -> None:
    files = make_folder(tmp_path / "images")
    assert pack(tmp_path / "images", tmp_path / "set") == (7, [])
    assert [image for image, _ in packed(tmp_path / "set")] == list(files.values())
    assert read_names(tmp_path / "set/identities.txt", 3) == ["anna", "bob", "zoë"]
    assert unpack(tmp_path / "set", tmp_path / "back", workers=2) == 7
    back = {str(path.relative_to(tmp_path / "back")): path.read_bytes() for path in (tmp_path / "back").rglob("*.*")}
    assert sorted(back.values()) == sorted(files.values())
    assert "zoë/00000007.png" in back
    pack(tmp_path / "back", tmp_path / "again")
    for name in ("train.rec", "train.idx", "property", "identities.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "set" / name).read_bytes()


@pytest.mark.parametrize("separator", ["\t", ","])
def test_list_file(tmp_path: Path, separator: str) -> None:
    files = make_folder(tmp_path / "images")
    labels = {"anna": 2, "bob": 0, "zoë": 3}
    order = list(reversed(files))
    text = "\n".join(f"images/{path}{separator}{labels[path.split('/')[0]]}" for path in order)
    (tmp_path / "list.txt").write_text(text + "\n\n", encoding="utf-8")
    pack(tmp_path / "list.txt", tmp_path / "set", PackOptions(gaps="keep"))
    expected = sorted(((files[path], labels[path.split("/")[0]]) for path in order), key=lambda item: item[1])
    assert packed(tmp_path / "set") == expected
    assert RecordIOSource(tmp_path / "set").num_classes == 4


@pytest.mark.parametrize(
    "line", ["a.jpg", "a.jpg\t-1", "a.jpg\t1.5", "a.jpg,x", ",3", "a.jpg\t99999999", "a.jpg," + "9" * 5000]
)
def test_wrong_line_of_a_list(tmp_path: Path, line: str) -> None:
    (tmp_path / "list.txt").write_text(f"a.jpg\t0\n{line}\n")
    with pytest.raises(DataError, match=r"list\.txt: line 2: "):
        pack(tmp_path / "list.txt", tmp_path / "set")


def test_size_and_quality(tmp_path: Path) -> None:
    files = make_folder(tmp_path / "images")
    large = encode_jpeg(decode(jpegs(1, 64)[0][0], ""))
    (tmp_path / "images/anna/0.jpg").write_bytes(large)
    pack(tmp_path / "images", tmp_path / "set", PackOptions(size=32))
    images = [image for image, _ in packed(tmp_path / "set")]
    assert images[1:] == list(files.values())[1:]  # those of the right size keep their bytes
    assert decode(images[0], "").shape == (32, 32, 3)
    block_means = decode(large, "").reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(decode(images[0], "") - block_means).mean() < 6
    pack(tmp_path / "images", tmp_path / "small", PackOptions(size=32, quality=30))
    small = [image for image, _ in packed(tmp_path / "small")]
    assert all(image.startswith(b"\xff\xd8") for image in small)
    assert sum(map(len, small)) < sum(map(len, images)) / 2


def test_other_formats_become_png(tmp_path: Path) -> None:
    make_folder(tmp_path / "images")
    pixels = decode(jpegs(1)[0][0], "")
    (tmp_path / "images/bob/x.bmp").write_bytes(as_png(pixels, "BMP"))
    pack(tmp_path / "images", tmp_path / "set")
    image = packed(tmp_path / "set")[5][0]
    assert image.startswith(b"\x89PNG")
    np.testing.assert_array_equal(decode(image, ""), pixels)


def spoil(root: Path) -> list[str]:
    """Six problems of five kinds in a folder -> a piece of each message."""
    (root / "anna/0.jpg").write_bytes((root / "anna/0.jpg").read_bytes()[:300])
    (root / "bob/bad.png").write_bytes(b"not an image")
    (root / "bob/empty.jpg").write_bytes(b"")
    (root / "bob/large.jpg").write_bytes(jpegs(1, 64)[0][0])
    (root / "bob/notes.txt").write_text("x")
    (root / "empty").mkdir()
    return [
        "anna/0.jpg: broken JPEG", "bob/bad.png: not an image of", "bob/empty.jpg: the image is empty",
        "bob/large.jpg: must be 32 x 32 pixels (as the first image is; --size", "bob/notes.txt: not an image file",
        "empty: identity without an image",
    ]  # fmt: skip


def test_every_problem_is_reported_and_nothing_written(tmp_path: Path) -> None:
    make_folder(tmp_path / "images")
    expected = spoil(tmp_path / "images")
    with pytest.raises(PackError) as caught:
        pack(tmp_path / "images", tmp_path / "set")
    lines = str(caught.value).splitlines()
    assert len(caught.value.problems) == len(lines) - 1 == 6
    assert all(any(line.startswith(start) for line in lines) for start in expected)
    assert lines[-1] == "6 images cannot be packed; nothing was written"
    assert list((tmp_path / "set").iterdir()) == []


def test_skipped_images_are_listed(tmp_path: Path) -> None:
    files = make_folder(tmp_path / "images")
    expected = spoil(tmp_path / "images")
    count, problems = pack(tmp_path / "images", tmp_path / "set", PackOptions(skip_unreadable=True, workers=2))
    assert (count, len(problems)) == (6, 6)
    lines = (tmp_path / "set/skipped.txt").read_text().splitlines()
    assert len(lines) == 6
    assert all(any(line.replace("\t", ": ").startswith(start) for line in lines) for start in expected)
    assert [image for image, _ in packed(tmp_path / "set")] == list(files.values())[1:]
    assert read_names(tmp_path / "set/identities.txt", 4) == ["anna", "bob", "empty", "zoë"]


@pytest.mark.parametrize("size", [None, 32])
def test_no_image_left_after_skipping(tmp_path: Path, size: int | None) -> None:
    (tmp_path / "images/anna").mkdir(parents=True)
    (tmp_path / "images/anna/1.jpg").write_bytes(b"text")
    with pytest.raises(PackError, match="cannot be packed"):
        pack(tmp_path / "images", tmp_path / "set", PackOptions(size=size, skip_unreadable=True))


def test_missing_file_of_a_list_and_image_that_is_not_square(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(as_png(np.zeros((32, 40, 3), np.uint8)))
    (tmp_path / "list.txt").write_text("a.jpg,0\nb.png,0\n")
    with pytest.raises(
        PackError,
        match=r"a\.jpg: cannot be read: No such file(.|\n)*b\.png: must be square \(docs/data\.md .*\), got 40 x 32",
    ):
        pack(tmp_path / "list.txt", tmp_path / "set", PackOptions(size=32))


@pytest.mark.parametrize("options", [{"size": 0}, {"quality": 101}, {"workers": 0}])
def test_wrong_options(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=rf"pack\.{next(iter(options))}: must be in"):
        PackOptions(**options)


def test_unpack_refuses(tmp_path: Path) -> None:
    pack_records(tmp_path / "set", [(b"\xff\xd8 one", 0), (b"text", 1)], 2, 32)
    with pytest.raises(DataError, match=r"key 2 at byte .*: not a known image format"):
        unpack(tmp_path / "set", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="out: already exists"):
        unpack(tmp_path / "set", tmp_path / "out")


def launch(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pack.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(LAUNCH), run_name="__main__")
    return int(caught.value.code or 0)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "images")
    assert launch(monkeypatch, "pack", tmp_path / "images", tmp_path / "set") == 0
    assert "7 images packed" in capsys.readouterr().out
    assert launch(monkeypatch, "unpack", tmp_path / "set", tmp_path / "back") == 0
    assert "7 images unpacked" in capsys.readouterr().out
    assert launch(monkeypatch, "pack", tmp_path / "images", tmp_path / "set") == 1
    assert "already exists" in capsys.readouterr().err
    (tmp_path / "images/bob/bad.jpg").write_bytes(b"text")
    assert launch(monkeypatch, "pack", tmp_path / "images", tmp_path / "other") == 1
    assert "bob/bad.jpg: not an image" in capsys.readouterr().err
    assert launch(monkeypatch, "pack", tmp_path / "images", tmp_path / "other", "--skip-unreadable") == 0
    assert "7 images packed" in (out := capsys.readouterr().out)
    assert "1 skipped" in out


def test_a_list_of_mxnet(tmp_path: Path) -> None:
    files = make_folder(tmp_path / "images")
    lines = [f"{9 - n}\t{('anna', 'bob', 'zoë').index(path.split('/')[0]):.6f}\t{path}" for n, path in enumerate(files)]
    (tmp_path / "images" / "list.lst").write_text("\n".join(lines[::-1]) + "\n", encoding="utf-8")
    assert pack(tmp_path / "images" / "list.lst", tmp_path / "set") == (7, [])
    assert [label for _, label in packed(tmp_path / "set")] == [0, 0, 0, 1, 1, 2, 2]
    (tmp_path / "images" / "list.lst").write_text("0\tanna\tanna/0.jpg\n")
    with pytest.raises(DataError, match=r"list\.lst: line 1: must be number<TAB>label<TAB>path, got"):
        pack(tmp_path / "images" / "list.lst", tmp_path / "other")
