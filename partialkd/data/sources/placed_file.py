"""A data file in which every image is a run of bytes at a known place: a tar shard, an Arrow file.

Memory: 16 bytes per image (offset, size, class id).
Errors: `DataError` with file, record and byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from partialkd.data.formats.recordio import READAHEAD, READAHEAD_MOST
from partialkd.data.sources.files import DataFile, add_numbers
from partialkd.data.sources.index_cache import Index, open_index
from partialkd.data.sources.source import sampled_bytes
from partialkd.errors import DataError
from partialkd.storage.open_file import OpenFile

Places = tuple[np.ndarray, np.ndarray, np.ndarray]  # offsets (n,) int64, sizes and labels (n,) integers


class PlacedFile(DataFile):
    """The images of one file. record: what a place in it is called ("sample", "row")."""

    def __init__(self, file: OpenFile, index: Index, record: str) -> None:
        super().__init__(index)
        self.file, self.record = file, record
        self.offsets, self.sizes = index.arrays["offsets"], index.arrays["sizes"]

    @classmethod
    def opened(
        cls, path: Path, form: str, record: str, cache: Path | None, find: Callable[[OpenFile], Places]
    ) -> PlacedFile:
        """Open a file of a form, its places from the cache where it has been opened before."""
        file = OpenFile(path)
        return cls(file, open_index([path], form, cache, lambda: _index(file, *find(file))), record)

    def image(self, at: int) -> bytes:
        size = int(self.sizes[at])
        content = self.file.bytes_at(int(self.offsets[at]), size)
        if len(content) < size:
            raise DataError(f"{self.where(at)}: the file ends inside the image (truncated)")
        return content

    def where(self, at: int) -> str:
        return f"{self.file.path}: {self.record} {at} at byte {self.offsets[at]}"

    def readahead(self, start: int, stop: int) -> None:
        begin, last = int(self.offsets[start]), stop - 1
        end = int(self.offsets[last]) + int(self.sizes[last])
        if begin < end <= begin + READAHEAD_MOST:
            self.file.will_need(begin, end, READAHEAD)


def _narrow(values: np.ndarray) -> np.ndarray:
    """Return numbers as int32 where all of them fit."""
    return values.astype(np.int32) if values.max(initial=0) < 1 << 31 else values


def _index(file: OpenFile, offsets: np.ndarray, sizes: np.ndarray, labels: np.ndarray) -> Index:
    if not len(labels):
        raise DataError(f"{file.path}: holds no image")
    sizes, labels = _narrow(sizes), _narrow(labels)
    digest = hashlib.sha256(np.array([file.size]).data)
    for values in (offsets, sizes, labels):
        add_numbers(digest, values)
    read: Callable[[int], bytes] = lambda at: file.bytes_at(int(offsets[at]), int(sizes[at]))
    for content in sampled_bytes(read, len(labels)):
        digest.update(content)
    return Index(digest.hexdigest(), {"offsets": offsets, "sizes": sizes, "labels": labels})
