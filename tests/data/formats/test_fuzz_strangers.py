"""Images, archives and lists with bytes changed, and arbitrary ones: they are read, or a DataError names the file."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.bad_images import lying, many_scans, picture
from helpers.fuzzing import CHANGES, Change, bounded, changed, read_or_refuse
from partialkd.data.formats.image_list_file import read_lst
from partialkd.data.formats.image_tree import list_images, read_images
from partialkd.data.formats.insightface_folder import read_names
from partialkd.data.formats.pair_lists import FORMS, read_pair_list
from partialkd.data.formats.property_file import read_property
from partialkd.data.images.decode import Wanted, check_jpeg, decode, image_size
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.images.orientation import orientation
from partialkd.data.packing.image_list import files_to_pack
from partialkd.data.sources.identities import Names, excluded, mapped
from partialkd.errors import DataError

SIZE = 32
IMAGES = {form: lying(1, 6, form) for form in ("JPEG", "PNG", "WEBP", "TIFF")}
IMAGES |= {"scans": many_scans(40), "plain": encode_jpeg(picture(0))}


def _look(content: bytes) -> None:
    assert 1 <= orientation(content) <= 8
    assert decode(content, "here", wanted=Wanted(SIZE)).shape == (SIZE, SIZE, 3)


@pytest.mark.slow
@settings(bounded, max_examples=400)
@given(st.sampled_from(sorted(IMAGES)), CHANGES)
def test_changed_images(name: str, changes: list[Change]) -> None:
    read_or_refuse(lambda: _look(changed(IMAGES[name], changes)))


@settings(bounded, max_examples=400)
@given(
    st.sampled_from([b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"RIFF", b"II*\0", b"MM\0*", b"BM", b""]),
    st.binary(max_size=99),
)
def test_any_bytes_as_image(start: bytes, rest: bytes) -> None:
    assert 1 <= orientation(start + rest) <= 8
    read_or_refuse(lambda: image_size(start + rest, "here"))
    read_or_refuse(lambda: _look(start + rest))


# ---------------------------------------------------------------------------------------------- archives


def _tar(form: int) -> bytes:
    """Names of every kind: short, long, and with letters that need an extended header."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name in ("anna/1.jpg", "zo\xeb/2.jpg", f"{'b' * 120}/3.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 40
            archive.addfile(info, io.BytesIO(bytes(40)))
    return file.getvalue()


ARCHIVES = {"gnu": _tar(tarfile.GNU_FORMAT), "pax": _tar(tarfile.PAX_FORMAT)}
COMPRESSED = {name: gzip.compress(content, mtime=0) for name, content in ARCHIVES.items()}


def _read_archive(path: Path) -> None:
    found = list_images(path)
    wanted = [f"{identity}/{image}" for identity, images in found.items() for image in images]
    assert {name for name, _ in read_images(path, wanted)} == set(wanted)


@bounded
@given(st.sampled_from([ARCHIVES, COMPRESSED]), st.sampled_from(sorted(ARCHIVES)), CHANGES)
def test_changed_archives(
    tmp_path_factory: pytest.TempPathFactory, kind: dict[str, bytes], name: str, changes: list[Change]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.tar"
    path.write_bytes(changed(kind[name], changes))
    read_or_refuse(lambda: _read_archive(path))


def test_the_archives_are_read_when_whole(tmp_path: Path) -> None:
    for content in (*ARCHIVES.values(), *COMPRESSED.values()):
        (tmp_path / "whole.tar").write_bytes(content)
        _read_archive(tmp_path / "whole.tar")


# ------------------------------------------------------------------------------------------------- lists

LINES = st.lists(
    st.one_of(
        st.sampled_from(
            ["a\t0", "a/1.jpg,0", "name:anna\t1", "class:1", "a,b,same", "anna 1 2", "anna 1 bob 2", "1", "a b 1"]
        ),
        st.integers(-3, 10**12).map(str),
        st.just("9" * 5000),
        st.text(max_size=20),
    ),
    max_size=6,
)


def _readers() -> dict[str, Callable[[Path], object]]:
    names, present = Names(3, ["anna", "bob", "zo\xeb"]), np.ones(3, dtype=bool)
    numbers = Names(3, None)
    readers: dict[str, Callable[[Path], object]] = {
        "excluded": lambda path: excluded(path, names), "excluded ids": lambda path: excluded(path, numbers),
        "mapped": lambda path: mapped(path, names, present), "mapped ids": lambda path: mapped(path, numbers, present),
        "to pack": lambda path: files_to_pack(path, "refuse"), "names": lambda path: read_names(path, 2),
        "property": read_property, "lst": lambda path: list(read_lst(path)),
    }  # fmt: skip
    return readers | {form: (lambda path, form=form: read_pair_list(form, path)) for form in FORMS}  # type: ignore[misc]


READERS = _readers()


ENDS = st.sampled_from(["\n", "\r\n", "\0", "\x85"])


@pytest.mark.slow
@settings(bounded, max_examples=200)
@given(st.sampled_from(sorted(READERS)), LINES, ENDS, CHANGES, st.booleans())
def test_any_list(
    tmp_path_factory: pytest.TempPathFactory,
    reader: str,
    lines: list[str],
    end: str,
    changes: list[Change],
    whole: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.txt"
    content = end.join(lines).encode(errors="surrogatepass")
    path.write_bytes(content if whole else changed(content, changes))
    read_or_refuse(lambda: READERS[reader](path))


def test_a_tiff_with_a_second_page_of_nothing_is_broken() -> None:
    """Pillow raises TypeError."""
    file = io.BytesIO()
    Image.fromarray(picture(0)).save(file, "TIFF")
    content = bytearray(file.getvalue())
    (directory,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, directory)
    struct.pack_into("<I", content, directory + 2 + 12 * entries, len(content))
    with pytest.raises(DataError, match="here: broken image: Missing dimensions"):
        decode(bytes(content) + bytes(6), "here")


def test_a_jpeg_that_is_no_jpeg_is_refused_by_its_header() -> None:
    with pytest.raises(DataError, match="here: broken JPEG"):
        check_jpeg(b"\xff\xd8\xff\xe1\0", "here")
