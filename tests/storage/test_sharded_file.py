"""Rows on disk: only the files that overlap a shard are read, each is checked, missing classes are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from partialkd.errors import CheckpointError
from partialkd.storage import sharded_file
from partialkd.storage.sharded_file import read_rows, write_rows

ROWS = {"unit": torch.arange(60.0).view(10, 6), "seen": torch.arange(10) % 3 == 0}


def test_only_overlapping_files_are_read_and_all_of_these_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded_file, "PIECE_BYTES", 4 * 25)
    files = write_rows(tmp_path, ROWS, range(10))
    names = [f"{start:09d}-{stop:09d}.safetensors" for start, stop in ((0, 4), (4, 8), (8, 10))]
    assert list(files) == names
    assert all((tmp_path / name).stat().st_size == total.size for name, total in files.items())
    data = bytearray((tmp_path / names[0]).read_bytes())
    data[-3] ^= 4
    (tmp_path / names[0]).write_bytes(data)
    got = read_rows(tmp_path, files, range(5, 9))
    assert set(got) == set(ROWS)
    for name, rows in ROWS.items():
        torch.testing.assert_close(got[name], rows[5:9], rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=f"{names[0]}: damaged: the checksum must be"):
        read_rows(tmp_path, files, range(3, 9))


def test_missing_classes_are_named(tmp_path: Path) -> None:
    files = write_rows(tmp_path, {"unit": torch.zeros(4, 2)}, range(4))
    with pytest.raises(CheckpointError, match=r"1 of the 3 classes of range\(3, 6\)"):
        read_rows(tmp_path, files, range(3, 6))


def test_an_empty_shard_knows_the_tensors(tmp_path: Path) -> None:
    files = write_rows(tmp_path, ROWS, range(10)) | write_rows(tmp_path, {k: x[:0] for k, x in ROWS.items()}, range(0))
    got = read_rows(tmp_path, files, range(10, 10))
    assert {name: (x.dtype, x.shape) for name, x in got.items()} == {
        name: (x.dtype, (0, *x.shape[1:])) for name, x in ROWS.items()
    }


def test_no_tensors_are_no_files(tmp_path: Path) -> None:
    assert write_rows(tmp_path, {}, range(10)) == {}
    assert read_rows(tmp_path, {}, range(10)) == {}
