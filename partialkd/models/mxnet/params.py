"""MXNet parameter files (.params), read without MXNet.

Format, little-endian: list magic 0x112 and a reserved word (uint64 each); number of arrays (uint64) and the arrays;
number of names (uint64) and the names, each its length (uint64) and UTF-8 bytes. An array is its magic (uint32:
0xF993fac9, or 0xF993faca when saved with numpy shapes), storage type (int32, 0 dense), number of dimensions (int32)
and the dimensions (int64 each), device type and number (int32 each), type flag (int32), the values in C order.
0xF993fac8, of MXNet before 0.12, is the same without a storage type.
Names are "arg:<parameter>" and "aux:<moving statistic>" in files of `save_checkpoint`.

Arrays come out as read-only views of the file, memory-mapped: a matrix of many gigabytes costs nothing until it is
used. No size is believed before it is seen to lie inside the file.
Errors: CheckpointError naming the file, the array by its place, and the byte.
Differs: sparse arrays, empty arrays, the format before 0xF993fac8 and types other than the seven below are refused.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

import numpy as np

from partialkd.errors import CheckpointError

LIST_MAGIC = 0x112
V1_MAGIC, V2_MAGIC, V3_MAGIC = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
TYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8"}  # by mshadow's type flag
DEVICES = {1: "cpu", 2: "gpu", 3: "cpu_pinned", 5: "cpu_shared"}
MAX_DIMS = 32  # numpy's smallest limit over its versions
MAX_NAME = 4096  # bytes


def read_params(path: Path | str) -> dict[str, np.ndarray]:
    """Read a file: name as stored ("arg:conv0_weight") -> read-only array, in the order of the file."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not an MXNet parameter file: it is empty") from error
    reader = _Reader(data, path)
    if reader.number("<Q", "the file's magic number") != LIST_MAGIC:
        raise CheckpointError(f"{path}: not an MXNet parameter file: must begin with {LIST_MAGIC:#x}")
    reader.number("<Q", "the reserved word")
    arrays = [reader.array(f"array {place}") for place in range(reader.count("arrays"))]
    names = [reader.name(f"name {place}") for place in range(reader.count("names"))]
    reader.check_end()
    return _named(names, arrays, path)


def _named(names: list[str], arrays: list[np.ndarray], path: Path) -> dict[str, np.ndarray]:
    if len(names) != len(arrays):
        raise CheckpointError(f"{path}: must hold a name for each array, got {len(arrays)} arrays, {len(names)} names")
    named = dict(zip(names, arrays, strict=True))
    if len(named) != len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise CheckpointError(f"{path}: names must differ, got {twice!r} twice")
    return named


class _Reader:
    """A place in the file that only moves over bytes which are there."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self._at = data, path, 0

    def number(self, form: str, what: str) -> int:
        return struct.unpack_from(form, self._data, self._take(struct.calcsize(form), what))[0]

    def count(self, what: str) -> int:
        """Read the number of things to come, each of at least four bytes."""
        count, left = self.number("<Q", f"the number of {what}"), len(self._data) - self._at
        if count > left // 4:
            raise self._wrong(f"announces {count} {what}, but only {left} bytes follow")
        return count

    def array(self, what: str) -> np.ndarray:
        magic = self.number("<I", what)
        if magic not in (V1_MAGIC, V2_MAGIC, V3_MAGIC):
            raise self._wrong(f"{what}: magic number must be {V2_MAGIC:#x} (or its versions), got {magic:#x}")
        if magic != V1_MAGIC and (storage := self.number("<i", what)) != 0:
            raise self._wrong(f"{what}: must be dense (storage type 0), got storage type {storage}")
        shape = self._shape(what)
        device, _ = self.number("<i", what), self.number("<i", what)
        if device not in DEVICES:
            raise self._wrong(f"{what}: device type must be in {sorted(DEVICES)}, got {device}")
        kind = self.number("<i", what)
        if kind not in TYPES:
            raise self._wrong(f"{what}: type flag must be in {sorted(TYPES)}, got {kind}")
        values = math.prod(shape)
        dtype = np.dtype(TYPES[kind])
        start = self._take(values * dtype.itemsize, f"{what} of shape {shape}")
        return np.frombuffer(self._data, dtype, values, start).reshape(shape)

    def name(self, what: str) -> str:
        length = self.number("<Q", what)
        if length > MAX_NAME:
            raise self._wrong(f"{what}: a name has at most {MAX_NAME} bytes, got {length}")
        start = self._take(length, what)
        try:
            return self._data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._wrong(f"{what}: must be UTF-8: {error.reason}") from error

    def check_end(self) -> None:
        if self._at != len(self._data):
            raise self._wrong(f"{len(self._data) - self._at} bytes too many at the end")

    def _shape(self, what: str) -> tuple[int, ...]:
        dims = self.number("<i", what)
        if not 1 <= dims <= MAX_DIMS:
            raise self._wrong(f"{what}: must have 1 to {MAX_DIMS} dimensions, got {dims}")
        shape = tuple(self.number("<q", what) for _ in range(dims))
        if min(shape) < 1:
            raise self._wrong(f"{what}: dimensions must be positive, got {shape}")
        return shape

    def _take(self, size: int, what: str) -> int:
        """Move over `size` bytes; returns where they begin."""
        left = len(self._data) - self._at
        if size > left:
            raise self._wrong(f"{what} needs {size} bytes, but the file ends after {left} (truncated or damaged)")
        self._at += size
        return self._at - size

    def _wrong(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: byte {self._at}: {what}")
