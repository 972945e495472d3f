"""A mapped file is looked at before it is touched: a cut one is an error, not the end of the process."""

from __future__ import annotations

import os
import pickle
import zlib
from pathlib import Path

import pytest

from partialkd.errors import DataError
from partialkd.storage.mapped_file import MappedFile


def test_what_is_mapped_is_the_file(tmp_path: Path) -> None:
    path = tmp_path / "numbers.bin"
    path.write_bytes(bytes(range(40)))
    file = MappedFile(path, 40, DataError)
    assert file.array("<u2").tobytes() == path.read_bytes()
    assert file.checksum() == zlib.crc32(path.read_bytes())
    assert file.checksum(4, 20) == zlib.crc32(path.read_bytes()[4:20])
    assert pickle.loads(pickle.dumps(file)).checksum() == file.checksum()


def test_an_empty_file_can_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "numbers.bin"
    path.touch()
    file = MappedFile(path, 0, DataError)
    file.check()
    assert len(file.array("<i8")) == file.checksum() == 0


def test_another_size_is_refused_at_once_and_later(tmp_path: Path) -> None:
    path = tmp_path / "numbers.bin"
    path.write_bytes(bytes(8192))
    with pytest.raises(DataError, match=r"numbers\.bin: must have 8193 bytes, as the manifest says, got 8192"):
        MappedFile(path, 8193, DataError)
    file = MappedFile(path, 8192, DataError)
    os.truncate(path, 4096)
    for read in (file.check, file.checksum):
        with pytest.raises(DataError, match=r"numbers\.bin: must have 8192 bytes, .*got 4096: it was changed while"):
            read()
    with pytest.raises(DataError, match=r"nothing\.bin: cannot be read: No such file"):
        MappedFile(tmp_path / "nothing.bin", 1, DataError)
