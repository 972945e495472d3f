"""Files of named tensors with a checksum: safetensors, written as a stream and checked as they are read.

Written here and not by the library, which would hold the whole file in memory once more (and Python's lock with
it): header and tensors go to the disk chunk by chunk, through a running CRC-32 (checksum.py), and are flushed to the
disk. Reading needs the file's size in host memory beside the tensors. Loaded tensors are on the CPU. Little-endian
hosts.

Errors: `CheckpointError` naming the file: it cannot be written (disk full, read-only), cannot be read, or is not
what was written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from torch import Tensor

from partialkd.errors import CheckpointError
from partialkd.storage.checksum import crc32, hexadecimal

CHUNK_BYTES = 1 << 20  # at once to the disk, or from it
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class FileSum:
    """Size and checksum that a file must have."""

    size: int  # bytes
    crc32: str  # eight hexadecimal digits


Files = dict[str, FileSum]  # by path below some folder, with forward slashes


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileSum:
    """Write a new safetensors file. Tensors may be views, share memory and lie on any device."""
    return write_summed(path, _serialised(tensors))


def write_summed(path: Path, parts: Iterable[bytes | memoryview]) -> FileSum:
    """Write a new file of these bytes, flushed to the disk. What a failed write leaves of it stays."""
    size = crc = 0
    try:
        with path.open("wb", buffering=0) as stream:
            for part in parts:
                rest = memoryview(part)
                while rest:
                    chunk = rest[:CHUNK_BYTES]
                    chunk = chunk[: stream.write(chunk)]
                    crc, size, rest = crc32(chunk, crc), size + len(chunk), rest[len(chunk) :]
            os.fsync(stream.fileno())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
    return FileSum(size, hexadecimal(crc))


def read_tensors(path: Path, expected: FileSum) -> dict[str, Tensor]:
    """Read the tensors of a file and check that they are what was written."""
    try:
        return parse(read_bytes(path, expected))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a file of tensors: {error}") from error


def read_bytes(path: Path, expected: FileSum) -> bytes:
    """Read a whole file and check that it is what was written."""
    return b"".join(_checked(path, expected))


def check_file(path: Path, expected: FileSum) -> None:
    """Raise CheckpointError unless the file is as it was written. Holds one chunk of it in memory."""
    for _ in _checked(path, expected):
        pass


def check_size(path: Path, expected: FileSum) -> None:
    """Raise CheckpointError unless the file has the size that was written: the cheap part of `check_file`."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if size != expected.size:
        raise CheckpointError(f"{path}: must have {expected.size} bytes, got {size}")


def sums_to_json(files: Files) -> dict[str, dict[str, Any]]:
    """Convert sizes and checksums to what a manifest holds."""
    return {name: asdict(total) for name, total in sorted(files.items())}


def sums_from_json(files: dict[str, dict[str, Any]]) -> Files:
    """Convert back what a manifest holds; TypeError or AttributeError if it is something else."""
    return {name: FileSum(**total) for name, total in files.items()}


def _serialised(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The format: header length (8 bytes), JSON header padded to 8 bytes, the tensors end to end."""
    header, end = {}, 0
    for name, x in tensors.items():
        if x.dtype not in TYPES:
            raise CheckpointError(f"{name!r}: tensors of type {x.dtype} cannot be saved")
        start, end = end, end + x.numel() * x.element_size()
        header[name] = {"dtype": TYPES[x.dtype], "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for x in tensors.values():
        yield x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _checked(path: Path, expected: FileSum) -> Iterator[bytes]:
    """The file in chunks; at its end an error if they are not what was written."""
    check_size(path, expected)
    crc = 0
    try:
        with path.open("rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                crc = crc32(chunk, crc)
                yield chunk
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if hexadecimal(crc) != expected.crc32:
        raise CheckpointError(f"{path}: damaged: the checksum must be {expected.crc32}, got {hexadecimal(crc)}")
