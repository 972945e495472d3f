"""InsightFace verification sets (.bin): encoded images, two a pair, and whether each pair is one person.

A .bin is a pickle of (list of 2n encoded images, list of n bools), written by Python 2 or 3. It is read by an
unpickler that can build lists, tuples, bytes, numbers and bools, and stand-ins of its own for the few names such
files use (`_codecs.encode`, numpy's bool scalars and one-dimensional bool or uint8 arrays). Any other name, code
above all, is refused.
Errors: `DataError` naming the file.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.errors import DataError
from partialkd.files import replacing

_NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BYTE_TYPES = {"b1": np.bool_, "bool": np.bool_, "?": np.bool_, "u1": np.uint8, "uint8": np.uint8}


@dataclass(frozen=True)
class VerificationSet:
    """n pairs: images 2k and 2k + 1 are pair k."""

    name: str
    images: Sequence[bytes]  # 2n encoded images
    same: np.ndarray  # (n,) bool


def read_bin(path: Path | str) -> VerificationSet:
    """Read a .bin; the set takes the file's name without its suffix."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = _BinUnpickler(file, encoding="bytes").load()
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
    """Write a .bin that InsightFace's tools read too; an existing file is replaced when the new one is complete."""
    path = Path(path)
    _check_lengths(len(images), len(same), path)
    content = ([bytes(image) for image in images], [bool(answer) for answer in same])
    with replacing(path) as (file,):
        pickle.dump(content, file, protocol=4)


def _check_lengths(images: int, answers: int, path: Path) -> None:
    if images % 2:
        raise DataError(f"{path}: pairs need an even number of images, got {images}")
    if images != 2 * answers:
        raise DataError(f"{path}: {images} images are {images // 2} pairs, but there are {answers} answers")
    if not images:
        raise DataError(f"{path}: the set is empty")


def _items(value: Any, path: Path) -> Sequence[Any] | np.ndarray:
    value = value.value if isinstance(value, _Array) else value
    if not isinstance(value, list | tuple | np.ndarray):
        raise DataError(f"{path}: images and answers must be lists, got {type(value).__name__}")
    return value


def _image(item: Any, where: str) -> bytes:
    item = item.value if isinstance(item, _Array) else item
    if isinstance(item, np.ndarray) and item.dtype == np.uint8:
        item = item.tobytes()
    if not isinstance(item, bytes) or not item:
        raise DataError(f"{where}: must be the bytes of an encoded image, got {item!r:.60}")
    return item


def _answer(item: Any, where: str) -> bool:
    if isinstance(item, bool | np.bool_) or (isinstance(item, int) and item in (0, 1)):
        return bool(item)
    raise DataError(f"{where}: same must be true or false, got {item!r:.60}")


_UNPICKLING_ERRORS = (
    pickle.UnpicklingError, struct.error, ValueError, TypeError, AttributeError, IndexError, KeyError, EOFError,
    ImportError, OverflowError, MemoryError,
)  # fmt: skip


class _BinUnpickler(pickle.Unpickler):
    """Resolves names to this object's methods and to plain strings only: nothing a file could alter or misuse."""

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
        raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which no verification set needs")

    def _encode(self, text: str | bytes, encoding: str | bytes) -> bytes:
        """How Python 3 writes bytes at protocols Python 2 can read."""
        if encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"bytes must be encoded as latin1, got {encoding!r:.60}")
        return text.decode("utf-8").encode("latin1") if isinstance(text, bytes) else text.encode("latin1")

    def _no_bytes(self) -> bytes:
        return b""

    def _dtype(self, code: str | bytes, *_: Any) -> _ByteType:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if code not in _BYTE_TYPES:
            raise pickle.UnpicklingError(f"numpy values must be bool or uint8, got {code!r:.60}")
        return _ByteType(code)

    def _reconstruct(self, *_: Any) -> _Array:
        return _Array()

    def _frombuffer(self, data: bytes | bytearray, kind: _ByteType, shape: tuple[int, ...], _order: str) -> np.ndarray:
        return kind.array(bytes(data) if isinstance(data, bytearray) else data, shape)

    def _scalar(self, kind: _ByteType, data: bytes) -> Any:
        return kind.array(data, (1,))[0]


class _ByteType:
    """Stands for a numpy dtype of one byte."""

    __slots__ = ("_code",)

    def __init__(self, code: str) -> None:
        self._code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment: nothing to know of one byte."""

    def array(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        if not isinstance(data, bytes) or shape != (len(data),):
            raise pickle.UnpicklingError(
                f"numpy values must have one dimension and their bytes, got shape {shape!r:.60}"
            )
        values = np.frombuffer(data, np.uint8)
        return values.astype(bool) if _BYTE_TYPES[self._code] is np.bool_ else values


class _Array:
    """Stands for a numpy array while its state arrives."""

    __slots__ = ("value",)

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, _, data = state
        if not isinstance(kind, _ByteType):
            raise pickle.UnpicklingError("numpy array without a type")
        self.value = kind.array(data, shape)
