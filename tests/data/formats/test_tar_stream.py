"""Headers of archives that tarfile answers with other errors than its own."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from partialkd.data.formats.image_tree import list_images
from partialkd.errors import DataError


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def extended(key: str, value: str) -> bytes:
    """A pax header of one line, which begins with its own length: of two digits."""
    line = f"{len(key) + len(value) + 5} {key}={value}\n"
    assert len(line) == int(line.split()[0])
    return member("x", line.encode(), tarfile.XHDTYPE)


HEADERS = {
    "a chain of names": member("x", b"a" * 512, tarfile.GNUTYPE_LONGNAME) * 500,
    "a map without numbers": extended("GNU.sparse.map", "x,y"),
    "a size that is none": extended("GNU.sparse.realsize", "large"),
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("name", HEADERS)
def test_damaged_headers_are_errors_of_the_archive(name: str, first: bool, tmp_path: Path) -> None:
    before = b"" if first else member("anna/1.jpg")
    (tmp_path / "faces.tar").write_bytes(before + HEADERS[name] + member("anna/2.jpg") + bytes(1024))
    with pytest.raises(
        DataError, match=r"faces\.tar: cannot be read: (too many headers of one member|invalid header: )"
    ):
        list_images(tmp_path / "faces.tar")
