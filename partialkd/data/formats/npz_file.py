"""Map the arrays of an .npz (numpy.savez) into memory: none of them is read before it is used.

An .npz is a zip of .npy files. Its arrays must be stored, not compressed (numpy.savez_compressed), and hold numbers:
arrays of objects are pickles, and are not read. `verify` compares each with the CRC-32 that the zip has of it.
Errors: of the kind the caller names, with file and array.
"""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
from pathlib import Path

import numpy as np

from partialkd.errors import PartialKDError
from partialkd.storage.mapped_file import MappedFile

# What numpy raises of headers that are none: it reads them as Python literals.
NPY_ERRORS = (
    ValueError, TypeError, SyntaxError, KeyError, OverflowError, MemoryError, RecursionError, EOFError, struct.error,
    tokenize.TokenError,
)  # fmt: skip
_LOCAL = struct.Struct("<4s22xHH")  # a local header: its mark, bytes of the name, bytes of the extra field


class NpzFile:
    """The arrays of a file by name; `sums` are what the zip says of each: bytes and CRC-32."""

    def __init__(self, path: Path, kind: type[PartialKDError]) -> None:
        self.path, self.kind = Path(path), kind
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
            size = self.path.stat().st_size
        except OSError as error:
            raise kind(f"{path}: cannot be read: {error.strerror or error}") from error
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise kind(f"{path}: not an .npz that can be read: {error}") from error
        self._map = MappedFile(self.path, size, kind)
        self._places = {one.filename.removesuffix(".npy"): self._place(one) for one in members}
        self.sums = {one.filename.removesuffix(".npy"): (one.file_size, one.CRC) for one in members}

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def array(self, name: str) -> np.ndarray:
        """View an array. Nothing is read yet: `check` before the view is."""
        start, size = self._places[name]
        content = self._map.array("u1")[start : start + size]
        try:
            shape, fortran, dtype, length = _header(content[: 1 << 16].tobytes())
            if fortran or dtype.hasobject or length + math.prod(shape) * dtype.itemsize != size:
                raise ValueError("it is not a whole array of numbers, row after row")
        except NPY_ERRORS as error:
            raise self.kind(f"{self.path}: array {name}: cannot be read: {first_line(error)}") from error
        return content[length:].view(dtype).reshape(shape)

    def check(self) -> None:
        """Raise an error if the file was cut while it is in use."""
        self._map.check()

    def verify(self, name: str) -> None:
        """Compare the CRC-32 of an array, about 1 GB/s."""
        start, size = self._places[name]
        if self._map.checksum(start, start + size) != self.sums[name][1]:
            raise self.kind(f"{self.path}: array {name}: is damaged: its checksum is not the file's")

    def _place(self, member: zipfile.ZipInfo) -> tuple[int, int]:
        """Find where the bytes of a member begin, and how many there are."""
        if member.compress_type != zipfile.ZIP_STORED:
            rule = "is compressed; write it with numpy.savez, not savez_compressed"
            raise self.kind(f"{self.path}: array {member.filename.removesuffix('.npy')}: {rule}")
        content = self._map.array("u1")
        header = content[member.header_offset : member.header_offset + _LOCAL.size].tobytes()
        mark, name, extra = _LOCAL.unpack(header) if len(header) == _LOCAL.size else (b"", 0, 0)
        start = member.header_offset + _LOCAL.size + name + extra
        if mark != b"PK\3\4" or start + member.file_size > len(content):
            raise self.kind(f"{self.path}: array {member.filename}: its place in the file is wrong (damaged)")
        return start, member.file_size


def first_line(error: BaseException) -> str:
    """What an error of numpy says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Read the header of a .npy -> shape, whether columns come first, type, bytes of the header."""
    file = io.BytesIO(start)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return *read(file), file.tell()
