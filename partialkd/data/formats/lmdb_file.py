"""Read an LMDB of labelled images: the form of HSFace and of HaiyuWu's training code, records in msgpack.

`__keys__` is the list of keys in the order of the images, `__len__` their number, `__classnum__` the number of classes
(where it is missing, the highest class id tells); each key holds (encoded image, class id). All of them are msgpack.
The same layout is also found with pickles in it: those are refused, for reading one can run what its writer wanted.
A file is opened once in a process, whoever reads it: LMDB forbids to open it twice. Reads are safe from several
threads; after a fork, and pickled to another process, it is opened again.
Errors: `DataError` with file and key; `ConfigError` where a library is missing. LMDB maps its file: one that is cut is
noticed before it is touched. What its pages say is trusted by LMDB itself: a damaged tree can end the process.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from partialkd.errors import ConfigError, DataError
from partialkd.storage.launcher_notes import note_mapped

_KEYS, _LENGTH, _CLASSES = b"__keys__", b"__len__", b"__classnum__"
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how they begin, by protocol
_ANEW = "write it anew with msgpack.packb((image, class id)) for each key, and __keys__, __len__, __classnum__ likewise"


class LmdbFile:
    """Opens a database, which is a file or a folder with data.mdb, and reads its records."""

    def __init__(self, path: Path) -> None:
        path = Path(path)
        self.path = path / "data.mdb" if path.is_dir() else path
        try:
            self.size = os.stat(self.path).st_size
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error
        self._process, self._opened = os.getpid(), _shared(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "_process": 0, "_opened": None}

    def keys(self) -> list[bytes]:
        """Read the keys in the order of the images."""
        keys, length = self._value(_KEYS), self._value(_LENGTH)
        if not isinstance(keys, list) or not all(isinstance(key, bytes) and key for key in keys):
            raise DataError(f"{self.path}: needs the list of keys under __keys__, has {_kind(keys)} there")
        if length is not None and length != len(keys):
            raise DataError(f"{self.path}: __len__ says {_kind(length)} images, __keys__ lists {len(keys)}")
        if not keys:
            raise DataError(f"{self.path}: holds no image")
        return keys

    def classes(self) -> int | None:
        """Read the number of classes, None where it is not said."""
        classes = self._value(_CLASSES)
        if classes is not None and (type(classes) is not int or classes <= 0):
            raise DataError(f"{self.path}: __classnum__ must be a positive number, got {_kind(classes)}")
        return classes

    def record(self, key: bytes) -> tuple[bytes, Any]:
        """Read the encoded image of a key and its label, whatever that is."""
        value = self._value(key)
        if value is None:
            raise DataError(f"{self.where(key)}: is listed under __keys__, but has no record")
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], bytes)):
            raise DataError(f"{self.where(key)}: must be (encoded image, class id), got {_kind(value)}")
        if not value[0]:
            raise DataError(f"{self.where(key)}: the image is empty")
        return value[0], value[1]

    def where(self, key: bytes) -> str:
        return f"{self.path}: key {key.decode('utf-8', 'backslashreplace')}"

    def _value(self, key: bytes) -> Any:
        """Read the content of a key, None without one."""
        lmdb, msgpack = _libraries()
        try:
            with self._environment().begin(buffers=True) as reading:
                packed = reading.get(key)
                return None if packed is None else msgpack.unpackb(packed, raw=True, strict_map_key=False)
        except lmdb.Error as error:
            raise DataError(f"{self.where(key)}: cannot be read: {error}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise self._no_msgpack(key, error) from error

    def _no_msgpack(self, key: bytes, error: Exception) -> DataError:
        with self._environment().begin() as reading:
            start = reading.get(key)[:2]
        if start in _PICKLES:
            return DataError(f"{self.where(key)}: is a pickle, which can run commands and is not read; {_ANEW}")
        return DataError(f"{self.where(key)}: not msgpack: {error or type(error).__name__}")

    def _environment(self) -> Any:
        """Return the open database of this process; DataError if its file was cut."""
        if self._process != os.getpid():
            self._process, self._opened = os.getpid(), _shared(self.path)
        found = os.stat(self.path).st_size
        if found < self.size:
            raise DataError(f"{self.path}: had {self.size} bytes when it was opened, now it has {found}")
        return self._opened


_lock = Lock()
_open: WeakValueDictionary[tuple[int, int, int], Any] = WeakValueDictionary()  # by process, device, inode


def _shared(path: Path) -> Any:
    """Open a database, or share what this process has open of it."""
    lmdb, _ = _libraries()
    with _lock:
        stat = os.stat(path)
        key = os.getpid(), stat.st_dev, stat.st_ino
        found = _open.get(key)
        if found is None:
            _close_inherited()
            try:
                found = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False, create=False)
                needed = (found.info()["last_pgno"] + 1) * found.stat()["psize"]
            except lmdb.Error as error:
                raise DataError(f"{path}: not a database of LMDB that can be read: {error}") from error
            if stat.st_size < needed:
                raise DataError(f"{path}: is cut short: it has {stat.st_size} bytes of {needed}")
            note_mapped(path)
            _open[key] = found
        return found


def _close_inherited() -> None:
    """Close what the parent of a forked process has open: LMDB would take it for opened twice. The parent's stays."""
    for (process, *_), database in list(_open.items()):
        if process != os.getpid():
            database.close()


@lru_cache(maxsize=1)
def _libraries() -> tuple[Any, Any]:
    try:
        import lmdb
        import msgpack
    except ImportError as error:
        raise ConfigError(f"an LMDB needs {error.name}: pip install 'partialkd[formats]'") from error
    return lmdb, msgpack


def _kind(value: Any) -> str:
    return repr(value)[:60] if value is None or isinstance(value, int | bytes | str) else f"a {type(value).__name__}"
