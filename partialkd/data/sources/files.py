"""The base of sources whose images lie in one or more data files, read one after the other as one data set.

A `DataFile` gives the images of one file by their place in it; `FilesSource` puts several together. What was found when
a file was opened is an `Index` (index_cache.py), which also keeps it from one start to the next.
Errors: `DataError` naming file and record.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from partialkd.data.formats.text_file import read_text
from partialkd.data.sources.identities import Names
from partialkd.data.sources.index_cache import Index
from partialkd.data.sources.source import Source, check_index
from partialkd.errors import DataError

_CHUNK = 1 << 20  # elements hashed in one go


class DataFile(ABC):
    """The images of one file, in its order: `labels` (n,) int32, and the digest that tells its content apart."""

    def __init__(self, index: Index) -> None:
        self.index, self.labels, self.digest = index, index.arrays["labels"], index.digest

    def __len__(self) -> int:
        return len(self.labels)

    def check(self) -> None:
        """Raise DataError if something was cut that is in use; before every read."""
        self.index.check()

    @abstractmethod
    def image(self, at: int) -> bytes:
        """Read the encoded image at a place; safe from several threads."""

    @abstractmethod
    def where(self, at: int) -> str:
        """Name the record at a place for error messages."""

    def readahead(self, start: int, stop: int) -> None:  # noqa: B027 (nothing is a fit default)
        """Hint to the system that images start..stop-1 will be wanted soon."""


File = TypeVar("File", bound=DataFile)


class FilesSource(Source, Generic[File]):
    """Reads the images of files that lie one after the other."""

    def __init__(self, files: Sequence[File], num_classes: int, names: Names) -> None:
        self.files, self.num_classes, self.names = list(files), num_classes, names
        self._starts = [0, *accumulate(len(file) for file in self.files)]
        self.sizes: tuple[int, ...] = (len(self),)
        digests = [file.digest for file in self.files]
        self.fingerprint = digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def __len__(self) -> int:
        return self._starts[-1]

    def labels(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        stop = len(self) if stop is None else stop
        for file in self.files:
            file.check()
        parts = [
            file.labels[max(start - first, 0) : max(stop - first, 0)]
            for file, first in zip(self.files, self._starts, strict=False)
        ]
        return np.concatenate(parts).astype(np.int64)

    def locate(self, index: int) -> tuple[File, int]:
        """Find the file of an image, and its place among the file's images."""
        check_index(index, len(self))
        number = bisect_right(self._starts, index) - 1
        self.files[number].check()
        return self.files[number], index - self._starts[number]

    def read(self, index: int) -> tuple[bytes, int]:
        file, at = self.locate(index)
        return file.image(at), int(file.labels[at])

    def name(self, index: int) -> str:
        file, at = self.locate(index)
        return file.where(at)

    def readahead(self, start: int, stop: int) -> None:
        """Have the system read images start..stop-1, which may lie in several files, into its page cache."""
        while start < stop:
            file, at = self.locate(start)
            count = min(stop - start, len(file) - at)
            file.readahead(at, at + count)
            start += count


def add_numbers(digest: Any, values: range | np.ndarray) -> None:
    """Add many numbers to a hash, a piece at a time."""
    digest.update(b"|")
    for start in range(0, len(values), _CHUNK):
        some = values[start : start + _CHUNK]
        some = np.arange(some.start, some.stop) if isinstance(some, range) else np.ascontiguousarray(some)
        digest.update(some.data)


def known_classes(files: Sequence[DataFile], named: Path) -> tuple[int, Names]:
    """Tell the number of classes, and their names, of a format that does not: by identities.txt, or by the labels."""
    classes = 1 + max(int(file.labels.max()) for file in files)
    if not named.is_file():
        return classes, Names(classes, None)
    listed = read_text(named).count("\n")
    if listed < classes:
        raise DataError(f"{named}: names {listed} identities, but there is an image of class {classes - 1}")
    return listed, Names(listed, None, named)
