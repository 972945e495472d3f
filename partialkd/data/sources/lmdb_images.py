"""The source of an LMDB of images (formats/lmdb_file.py): in the order of its list of keys.

Opening reads every record once, unless a `cache` folder keeps what came out. Memory: 4 bytes per image where the keys
are the numbers from 0 on, as they usually are; else the keys as well. Reading them first takes some 50 bytes per key.
Errors: `DataError` with file and key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.data.formats.label import label_of
from partialkd.data.formats.lmdb_file import LmdbFile
from partialkd.data.sources.files import DataFile, FilesSource, add_numbers
from partialkd.data.sources.identities import Names
from partialkd.data.sources.index_cache import Index, open_index
from partialkd.data.sources.source import sampled_bytes
from partialkd.errors import DataError
from partialkd.world.passes import counted


class LmdbImages(DataFile):
    """The images of one database."""

    def __init__(self, file: LmdbFile, index: Index) -> None:
        super().__init__(index)
        self.file = file
        self._key_bytes, self._key_ends = index.arrays["key_bytes"], index.arrays["key_ends"]  # empty: numbers

    def key(self, at: int) -> bytes:
        if not len(self._key_ends):
            return b"%d" % at
        start = int(self._key_ends[at - 1]) if at else 0
        return self._key_bytes[start : int(self._key_ends[at])].tobytes()

    def image(self, at: int) -> bytes:
        return self.file.record(self.key(at))[0]

    def where(self, at: int) -> str:
        return self.file.where(self.key(at))


class LmdbSource(FilesSource[LmdbImages]):
    """Reads one database."""

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        file = LmdbFile(path)
        images = LmdbImages(file, open_index([file.path], "lmdb", cache, lambda: _look_through(file)))
        highest, said = int(images.labels.max()), file.classes()
        classes = said or highest + 1
        if highest >= classes:
            at = int(images.labels.argmax())
            rule = f"label must be an integer in [0, {classes}), as __classnum__ says"
            raise DataError(f"{images.where(at)}: {rule}, got {highest}")
        super().__init__([images], classes, Names(classes, None))


def _look_through(file: LmdbFile) -> Index:
    keys = file.keys()
    labels = np.empty(len(keys), np.int32)
    for at, key in enumerate(counted(keys, f"looking through {file.path.name}", len(keys), "records")):
        labels[at] = label_of(file.record(key)[1], file.path, f"key {key.decode('utf-8', 'backslashreplace')}")
    arrays = {"labels": labels, **_keys_kept(keys)}
    digest: Any = hashlib.sha256(np.array([file.size]).data)
    for values in arrays.values():
        add_numbers(digest, values)
    read: Callable[[int], bytes] = lambda at: file.record(keys[at])[0]
    for content in sampled_bytes(read, len(keys)):
        digest.update(content)
    return Index(digest.hexdigest(), arrays)


def _keys_kept(keys: list[bytes]) -> dict[str, np.ndarray]:
    """Return all keys as one run of bytes, and where each ends; nothing where they are 0, 1, 2, ..."""
    numbers = all(key == b"%d" % at for at, key in enumerate(keys))
    ends = [] if numbers else list(accumulate(len(key) for key in keys))
    joined = b"" if numbers else b"".join(keys)
    return {"key_bytes": np.frombuffer(joined, np.uint8), "key_ends": np.array(ends, np.int64)}
