"""Tar shards of every dialect, and what is said of those that no training can use."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.format_cases import drawn, write_webdataset
from partialkd.data.formats.tar_index import list_members
from partialkd.data.sources.webdataset import WebDatasetSource
from partialkd.errors import DataError
from partialkd.storage.open_file import OpenFile

IMAGE = drawn(1)[0][0]
GOOD = {"a.jpg": IMAGE, "a.cls": b"0", "b.jpg": IMAGE, "b.cls": b"1"}


def write_tar(path: Path, files: dict[str, bytes], form: int = tarfile.USTAR_FORMAT, **header: Any) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in header.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_lists(form: int, tmp_path: Path) -> None:
    """Long names, names that are not ASCII, times that need an extended header, folders, an empty file."""
    files = {"a/b.jpg": b"1", "x" * 60 + "/" + "y" * 90 + ".jpg": b"22" * 300, "zoë.cls": b"", "last": b"3" * 512}
    path = write_tar(tmp_path / "a.tar", files, form, mtime=1.5 if form == tarfile.PAX_FORMAT else 1)
    with tarfile.open(path, "a", format=form) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    if form != tarfile.USTAR_FORMAT:
        files["n" * 300] = b"long"
        path = write_tar(path, files, form)
    found = {name: path.read_bytes()[offset : offset + size] for name, offset, size in list_members(OpenFile(path))}
    assert found == files


def test_sizes_in_binary_and_in_extended_headers(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a": b"12345"}, tarfile.PAX_FORMAT, pax_headers={"size": "5"})
    assert [member.size for member in list_members(OpenFile(path))] == [5]
    content = bytearray(write_tar(path, {"a": b"12345"}, tarfile.GNU_FORMAT).read_bytes())
    content[124:136] = b"\x80" + (5).to_bytes(11, "big")
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + sum(content[156:512]) + 256)
    path.write_bytes(content)
    assert [member.size for member in list_members(OpenFile(path))] == [5]


def test_samples_of_every_kind(tmp_path: Path) -> None:
    files = {
        "./a.PNG": IMAGE, "./a.cls": b"2", "b.seg.jpg": IMAGE, "b.json": b'{"label": 1}', "b.txt": b"other",
        "__meta__.json": b"{}", "README": b"", "c.json": b'{"cls": 0}', "c.webp": IMAGE, "d.jpg": IMAGE, "d.json": b"2",
    }  # fmt: skip
    source = WebDatasetSource(write_tar(tmp_path / "a.tar", files))
    assert source.labels().tolist() == [2, 1, 0, 2]
    assert source.num_classes == 3


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        WebDatasetSource(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


WRONG_FILES: dict[str, tuple[dict[str, bytes], str]] = {
    "no label": (GOOD | {"c.jpg": IMAGE}, r"sample c: has no class id: .*\(its files: jpg\)"),
    "no image": (GOOD | {"c.cls": b"1"}, r"sample c: a sample must have one image, this has none \(its files: cls\)"),
    "two images": ({"a.jpg": IMAGE, "a.png": IMAGE, "a.cls": b"0"}, r"one image, this has jpg, png"),
    "twice": ({"a.jpg": IMAGE, "./a.jpg": IMAGE, "a.cls": b"0"}, r"\./a\.jpg: occurs twice in its sample"),
    "empty image": ({"a.jpg": b"", "a.cls": b"0"}, r"a\.jpg: the image is empty"),
    "name as label": ({"a.jpg": IMAGE, "a.cls": b"anna\n"}, r"a\.cls: label must be an integer .*, got 'anna'; number"),
    "negative": ({"a.jpg": IMAGE, "a.cls": b"-1"}, r"a\.cls: label must be an integer in \[0, 16777216\), got -1"),
    "fraction": ({"a.jpg": IMAGE, "a.json": b'{"label": 1.5}'}, r"label must be an integer .*, got 1\.5"),
    "true": ({"a.jpg": IMAGE, "a.json": b"true"}, r"label must be an integer .*, got True"),
    "huge": ({"a.jpg": IMAGE, "a.cls": b"9" * 5000}, r"label must be an integer .*, got 9{20}"),
    "vector": ({"a.jpg": IMAGE, "a.json": b'{"label": [0, 1]}'}, r"label must be an integer .*, got a list"),
    "other keys": ({"a.jpg": IMAGE, "a.json": b'{"id": 1}'}, r"a\.json: needs `label` or `cls`, has id"),
    "deep JSON": ({"a.jpg": IMAGE, "a.json": b"[" * 60000}, r"label must be an integer"),
    "pickled": ({"a.jpg": IMAGE, "a.cls": b"\x80\x04K\x01."}, r"a\.cls: label must be an integer"),
    "long label": ({"a.jpg": IMAGE, "a.json": b" " * 70000}, r"has at most 65536 bytes, got 70000"),
    "empty": ({}, r"a\.tar: holds no image"),
}


@pytest.mark.parametrize("what", WRONG_FILES)
def test_a_sample_that_is_wrong_is_named(what: str, tmp_path: Path) -> None:
    files, says = WRONG_FILES[what]
    assert re.search(says, refused(write_tar(tmp_path / "a.tar", files)))


def _spoilt(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes()))  # type: ignore[return-value]


def _link(path: Path) -> None:
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("c.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "a.jpg"
        archive.addfile(member)


WRONG_SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut inside an image": (_spoilt(lambda b: b[:700]), r"a\.jpg: is cut short: the archive has 700 bytes"),
    "cut between two members": (_spoilt(lambda b: b[: b.index(b"b.jpg")]), r"is cut short: no end mark"),
    "cut inside a header": (_spoilt(lambda b: b[:300]), r"is cut short: no end mark .* after 300 bytes"),
    "nothing in it": (_spoilt(lambda b: b""), r"is cut short: no end mark of a tar archive after 0 bytes"),
    "gzip": (_spoilt(gzip.compress), r"is compressed \(gzip\), and cannot be read at any place; decompress it"),
    "text": (_spoilt(lambda b: b"no tar" * 500), r"a\.tar: not a tar archive"),
    "damaged header": (_spoilt(lambda b: b.replace(b"b.jpg", b"b.jpq")), r"damaged: no header .* at byte \d+"),
    "link": (_link, r"c\.jpg: is no file but of type '2'"),
    "gone": (Path.unlink, r"a\.tar: cannot be read: No such file"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_SHARDS)
def test_a_shard_that_is_wrong_is_named(what: str, tmp_path: Path) -> None:
    path, (spoil, says) = write_tar(tmp_path / "a.tar", GOOD), WRONG_SHARDS[what]
    spoil(path)
    assert re.search(says, said := refused(path)), said


def test_an_extended_header_that_says_it_is_huge(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"n" * 300 + ".jpg": IMAGE}, tarfile.GNU_FORMAT)
    content = bytearray(path.read_bytes())
    content[124:136] = b"77777777777\0"
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + sum(content[156:512]) + 256)
    path.write_bytes(content)
    assert "an extended header at byte 512 has at most 1048576 bytes" in refused(path)


def test_a_shard_cut_while_it_is_in_use(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", GOOD)
    source = WebDatasetSource(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"a\.tar: sample 1 at byte 3584: the file ends inside the image \(truncated\)"):
        source.read(1)


# ------------------------------------------------------------------------------------------- lists of shards


def write_index(folder: Path, counts: tuple[object, ...], **keys: Any) -> Path:
    shards = [{"url": f"faces-{n:06d}.tar", "nsamples": count} for n, count in enumerate(counts)]
    (folder / "index.json").write_text(json.dumps({"wids_version": 1, "shardlist": shards, **keys}))
    return folder / "index.json"


def test_an_index_gives_the_order(tmp_path: Path) -> None:
    images = drawn()
    index = write_index(write_webdataset(tmp_path / "set", images), (20, 13))
    assert len(WebDatasetSource(index)) == len(WebDatasetSource(tmp_path / "set")) == 33
    said = json.loads(index.read_text())
    index.write_text(json.dumps({**said, "shardlist": said["shardlist"][::-1]}))
    source = WebDatasetSource(index)
    assert [source.read(n) for n in range(33)] == images[20:] + images[:20]


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ((20, 12), r"faces-000001\.tar: holds 13 samples, its index says 12; is it the index of others\?"),
        ((20, 13, 4), r"faces-000002\.tar: cannot be read: No such file"),
        ((20, -1), r"index\.json: nsamples of faces-000001\.tar must be a whole number, got -1"),
        ((), r"index\.json: lists no shard"),
    ],
)
def test_an_index_that_disagrees(counts: tuple[object, ...], says: str, tmp_path: Path) -> None:
    write_index(write_webdataset(tmp_path / "set", drawn()), counts)
    assert re.search(says, refused(tmp_path / "set"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "not an index of wids"),
        ("{", "not an index of wids"),
        ('{"shardlist": [1]}', "not an index of wids"),
        ('{"datasets": []}', "not an index of wids"),
        ('{"shardlist": [{"url": "https://host/a.tar", "nsamples": 1}]}', "shards must be local files; download them"),
    ],
)
def test_an_index_that_is_none(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(text)
    assert says in refused(tmp_path / "index.json")


def test_names_of_identities(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "set", drawn())
    names = [f"person {n}" for n in range(7)]
    (tmp_path / "set" / "identities.txt").write_text("".join(f"{n}\t{name}\n" for n, name in enumerate(names)))
    source = WebDatasetSource(tmp_path / "set")
    assert (source.num_classes, source.names.known()) == (7, names)
    (tmp_path / "set" / "identities.txt").write_text("0\tperson 0\n")
    assert "names 1 identities, but there is an image of class 4" in refused(tmp_path / "set")


def test_a_folder_without_shards(tmp_path: Path) -> None:
    assert "holds no .tar" in refused(tmp_path)
