"""Files of tensors: the library reads what we write, and every flipped bit, cut and missing byte is found."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from partialkd.errors import CheckpointError
from partialkd.storage import tensor_file
from partialkd.storage.tensor_file import (
    TYPES,
    FileSum,
    check_file,
    read_bytes,
    read_tensors,
    sums_from_json,
    sums_to_json,
    write_summed,
    write_tensors,
)


def _tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    every = {str(dtype): (torch.randn(3, 5, generator=draw) * 9).to(dtype) for dtype in TYPES}
    base = torch.randn(4, 6, generator=draw)
    views = {"view": base[1:3], "same memory": base[2:], "transposed": base.T, "number": torch.tensor(7)}
    channels_last = torch.randn(2, 3, 4, 5, generator=draw).contiguous(memory_format=torch.channels_last)
    return {**every, **views, "channels last": channels_last, "empty": torch.zeros(0, 2)}


def test_the_library_reads_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", 7)
    path = tmp_path / "x.safetensors"
    total = write_tensors(path, _tensors())
    assert total == FileSum(path.stat().st_size, f"{zlib.crc32(path.read_bytes()):08x}")
    for got in (safetensors.torch.load_file(path), read_tensors(path, total)):
        assert sorted(got) == sorted(_tensors())
        for name, x in _tensors().items():
            assert torch.equal(got[name], x)
            assert got[name].dtype == x.dtype


def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    total = write_tensors(path, {"a": torch.arange(5), "b": torch.ones(2, dtype=torch.bool)})
    good = path.read_bytes()
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"x\.safetensors: damaged: the checksum must be"):
            read_tensors(path, total)
        path.write_bytes(good[:position])
        with pytest.raises(CheckpointError, match=f"x.safetensors: must have {len(good)} bytes, got {position}"):
            check_file(path, total)
    path.write_bytes(good)
    check_file(path, total)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be read: No such file"):
        read_bytes(path, total)


def test_what_is_no_file_of_tensors_is_named(tmp_path: Path) -> None:
    total = write_summed(tmp_path / "x", [b"some other", b" content"])
    assert read_bytes(tmp_path / "x", total) == b"some other content"
    with pytest.raises(CheckpointError, match="x: not a file of tensors"):
        read_tensors(tmp_path / "x", total)


def test_types_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'z'.*complex64"):
        write_tensors(tmp_path / "x", {"z": torch.zeros(1, dtype=torch.complex64)})


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none/x: cannot be written: No such file"):
        write_tensors(tmp_path / "none" / "x", {})


def test_sums_survive_json() -> None:
    files = {"b/c": FileSum(3, "0000ffff"), "a": FileSum(0, "00000000")}
    assert sums_from_json(json.loads(json.dumps(sums_to_json(files)))) == files
