"""Read and write InsightFace verification sets (.bin): encoded images, two per pair, and whether it is one person.

A .bin is a pickle of (list of 2n encoded images, list of n bools), written by Python 2 or 3. It is read by an
unpickler that can build lists, tuples, bytes, numbers and bools, and stand-ins of its own for the few names such
files use (`_codecs.encode`, numpy's bools and integers and arrays of them, of any shape: older OpenCV gave an encoded
image as (bytes, 1)). Any other name, code above all, is refused, and so are dictionaries, sets and objects. Python's
unpickler written in Python is the base: in the one written in C ten bytes of a file can fill the memory (a memo of 2^32
places). No length in the file is believed before that many bytes are there, and nothing is copied more often than the
file is long: time and memory are proportional to the file's size, whatever is in it.
Errors: `DataError` naming the file.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from partialkd.errors import DataError
from partialkd.storage.atomic_files import replacing

_NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMBER_TYPES = {"b1": "b1", "bool": "b1", "?": "b1"} | {
    code: f"{kind}{size}"
    for kind, name in (("u", "uint"), ("i", "int"))
    for size in (1, 2, 4, 8)
    for code in (f"{kind}{size}", f"{name}{8 * size}")
}
_BYTES = "u1"
_MOST_DIMENSIONS = 32  # numpy's own limit, once


@dataclass(frozen=True)
class VerificationSet:
    """Set of n pairs: images 2k and 2k + 1 are pair k."""

    name: str
    images: Sequence[bytes]  # 2n encoded images
    same: np.ndarray  # (n,) bool


def read_bin(path: Path | str) -> VerificationSet:
    """Read a .bin; the set takes the file's name without its suffix."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = _BinUnpickler(_Bounded(file), encoding="bytes").load()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except _UNPICKLING_ERRORS as error:
        raise DataError(f"{path}: not a verification set: {error}") from error
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise DataError(f"{path}: must hold (images, same), got {type(content).__name__}")
    images = [_image(item, f"{path}: image {number}") for number, item in enumerate(_items(content[0], path))]
    same = [_answer(item, f"{path}: pair {number}") for number, item in enumerate(_items(content[1], path))]
    _check_lengths(len(images), len(same), path)
    return VerificationSet(path.stem, images, np.array(same, dtype=bool))


def write_bin(path: Path | str, images: Sequence[bytes], same: Sequence[bool] | np.ndarray) -> None:
    """Write a .bin that InsightFace's tools read too; an existing file is replaced when the new one is complete.

    Equal images are in it once, as one object of the pickle.
    """
    path = Path(path)
    _check_lengths(len(images), len(same), path)
    distinct: dict[bytes, bytes] = {}
    content = ([distinct.setdefault(bytes(i), bytes(i)) for i in images], [bool(answer) for answer in same])
    with replacing(path) as (file,):
        pickle.dump(content, file, protocol=4)


def _check_lengths(images: int, answers: int, path: Path) -> None:
    if images % 2:
        raise DataError(f"{path}: pairs need an even number of images, got {images}")
    if images != 2 * answers:
        raise DataError(f"{path}: {images} images are {images // 2} pairs, but there are {answers} answers")
    if not images:
        raise DataError(f"{path}: the set is empty")


def _items(value: Any, path: Path) -> Sequence[Any]:
    value = getattr(value, "value", None) if isinstance(value, _Array) else value
    if isinstance(value, _Numbers):
        return value.items()
    if not isinstance(value, list | tuple):
        raise DataError(f"{path}: images and answers must be lists, got {_shown(value)}")
    return value


def _image(item: Any, where: str) -> bytes:
    item = getattr(item, "value", None) if isinstance(item, _Array) else item
    if isinstance(item, _Numbers) and item.kind == _BYTES:
        item = item.data
    if not isinstance(item, bytes) or not item:
        raise DataError(f"{where}: must be the bytes of an encoded image, got {_shown(item)}")
    return item


def _answer(item: Any, where: str) -> bool:
    item = getattr(item, "value", None) if isinstance(item, _Array) else item
    if isinstance(item, _Numbers) and len(item.items()) == 1:  # an array of one number
        item = item.items()[0]
    if isinstance(item, bool) or (isinstance(item, int) and item in (0, 1)):
        return bool(item)
    raise DataError(f"{where}: same must be true or false, got {_shown(item)}")


def _shown(value: Any) -> str:
    """Show a value short, and in no time: what is inside lists could be without end."""
    if isinstance(value, str | bytes):
        return repr(value[:40])
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and value.bit_length() < 64):
        return repr(value)
    return f"a {type(value).__name__}"


_UNPICKLING_ERRORS = (
    pickle.UnpicklingError, struct.error, ValueError, TypeError, AttributeError, IndexError, KeyError, EOFError,
    ImportError, OverflowError, MemoryError,
)  # fmt: skip


class _Bounded:
    """A file that gives as many bytes as are asked for, or raises EOFError before it reserves memory for them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.size = file, os.fstat(file.fileno()).st_size
        self._left = self.size

    def read(self, count: int) -> bytes:
        if count > self._left:
            raise EOFError(f"the file ends early: {count} bytes were to follow, {self._left} do")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


class _Opcodes(dict[int, Any]):
    """What a pickle may ask of the unpickler."""

    def __missing__(self, code: int) -> Any:
        raise pickle.UnpicklingError(f"the file uses the opcode {bytes([code])!r}, which no verification set needs")


# Of a list, tuple, string, number, bool, call of a name and its state; no dictionary, set, object or extension.
_OPCODES = (
    "PROTO FRAME MARK STOP POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT "
    "BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS GLOBAL "
    "STACK_GLOBAL REDUCE BUILD PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
)
_CODES = [getattr(pickle, name)[0] for name in _OPCODES.split()]


class _BinUnpickler(pickle._Unpickler):
    """Resolves names to this object's methods and to plain strings only: nothing a file could alter or misuse."""

    dispatch = _Opcodes({code: pickle._Unpickler.dispatch[code] for code in _CODES})
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    stack: list[Any]

    def __init__(self, file: _Bounded, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self._may_encode = file.size  # bytes: every image is in the file once

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _NumberType | _Array):
            raise pickle.UnpicklingError(f"the file sets the state of {_shown(self.stack[-1])}")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BYTEARRAY8[0]], dispatch[pickle.BUILD[0]] = load_bytearray8, load_build

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if name == "bytes" and module in ("builtins", "__builtin__"):
            return self._no_bytes
        if (module, name) == ("numpy", "dtype"):
            return self._dtype
        if (module, name) == ("numpy", "ndarray"):
            return "numpy.ndarray"
        if module in _NUMPY_MODULES and name in ("_reconstruct", "scalar"):
            return self._reconstruct if name == "_reconstruct" else self._scalar
        if (module, name) in (("numpy._core.numeric", "_frombuffer"), ("numpy.core.numeric", "_frombuffer")):
            return self._frombuffer
        raise pickle.UnpicklingError(f"the file asks for {module:.60}.{name:.60}, which no verification set needs")

    def _encode(self, text: str | bytes, encoding: str | bytes) -> bytes:
        """Stand for codecs.encode: how Python 3 writes bytes at protocols Python 2 can read."""
        if encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"bytes must be encoded as latin1, got {_shown(encoding)}")
        self._may_encode -= len(text)
        if self._may_encode < 0:
            raise pickle.UnpicklingError("the file encodes more bytes than it has")
        return text.decode("utf-8").encode("latin1") if isinstance(text, bytes) else text.encode("latin1")

    def _no_bytes(self) -> bytes:
        return b""

    def _dtype(self, code: str | bytes, *_: Any) -> _NumberType:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or code.lstrip("<>|=") not in _NUMBER_TYPES:
            raise pickle.UnpicklingError(f"numpy values must be bools or integers, got {_shown(code)}")
        return _NumberType(_NUMBER_TYPES[code.lstrip("<>|=")], code[0])

    def _reconstruct(self, *_: Any) -> _Array:
        return _Array()

    def _frombuffer(self, data: bytes, kind: _NumberType, shape: tuple[int, ...], *_order: Any) -> _Numbers:
        return kind.array(data, shape)

    def _scalar(self, kind: _NumberType, data: bytes) -> bool | int:
        return kind.array(data, ()).items()[0]


class _NumberType:
    """Stands for a numpy dtype of bools or integers."""

    __slots__ = ("_big_endian", "_kind")

    def __init__(self, kind: str, order: str) -> None:
        self._kind, self._big_endian = kind, order == ">"

    def __setstate__(self, state: Any) -> None:
        """Take the byte order; the rest is alignment and fields, which such types do not have."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        self._big_endian = order in (">", b">")

    def array(self, data: Any, shape: Any) -> _Numbers:
        """Make an array of numbers whose bytes are as many as their shape says."""
        lengths = shape if isinstance(shape, tuple) and len(shape) <= _MOST_DIMENSIONS else (-1,)
        if not isinstance(data, bytes) or not all(isinstance(n, int) and 0 <= n <= len(data) for n in lengths):
            raise pickle.UnpicklingError(f"numpy values must have a shape and their bytes, got {_shown(data)}")
        wanted = math.prod(lengths) * int(self._kind[1:])
        if len(data) != wanted:
            raise pickle.UnpicklingError(f"numpy values of shape {lengths} must have {wanted} bytes, got {len(data)}")
        return _Numbers(data, self._kind, self._big_endian)


@dataclass(frozen=True)
class _Numbers:
    """Stands for a numpy array, flat."""

    data: bytes
    kind: str  # "b1", "u1", "i8", ...
    big_endian: bool

    def items(self) -> list[Any]:
        """List the values as Python's bools or integers."""
        return np.frombuffer(self.data, ("|" if self.kind[1:] == "1" else "<>"[self.big_endian]) + self.kind).tolist()


class _Array:
    """Stands for a numpy array while its state arrives."""

    __slots__ = ("value",)

    value: _Numbers

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, _, data = state
        if not isinstance(kind, _NumberType):
            raise pickle.UnpicklingError("numpy array without a type")
        self.value = kind.array(data, shape)
