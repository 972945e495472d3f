"""What every set of labelled encoded images offers to loaders and plans.

A source is a fixed order of n images, index 0..n-1. Its labels are checked once, at opening, against
[0, num_classes). `read` gives encoded bytes; decoding is `decode.py`'s. Sources can be read from several threads, after
a fork, and pickled to spawned processes.
Errors: `DataError` with file and record key, or the image's path; `IndexError` for an index outside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

from partialkd.errors import DataError

SAMPLED = 64


class Source(Protocol):
    """A set of labelled encoded images in a fixed order."""

    num_classes: int
    sizes: tuple[int, ...]  # images of each data set, which lie one after the other; usually there is one
    fingerprint: str  # changes with sizes, order or labels of the data, and with the bytes of SAMPLED images of a set

    def __len__(self) -> int: ...

    def labels(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Class ids (stop - start,) int64 of these images, by default of all."""
        ...

    def read(self, index: int) -> tuple[bytes, int]:
        """Encoded image and class id; safe from several threads."""
        ...

    def name(self, index: int) -> str:
        """The record, for error messages."""
        ...

    def readahead(self, start: int, stop: int) -> None:
        """Images start..stop-1 will be wanted soon: a hint to the system, where it can be given."""
        ...


def sampled_bytes(read: Callable[[int], bytes], count: int) -> Iterator[bytes]:
    """sha256 of some of `count` images, evenly spaced, for a fingerprint: other pictures of the same sizes are others.

    An image that cannot be read is no business of a fingerprint: it counts as empty here, and is named when it is used.
    """
    for index in np.unique(np.linspace(0, count - 1, min(count, SAMPLED)).astype(np.int64)).tolist():
        try:
            content = read(index)
        except (DataError, OSError):
            content = b""
        yield hashlib.sha256(content).digest()


def check_index(index: int, length: int) -> None:
    """IndexError unless 0 <= index < length."""
    if not 0 <= index < length:
        raise IndexError(f"index must be in [0, {length}), got {index}")


def digest_of(parts: Iterable[bytes | np.ndarray]) -> str:
    """SHA-256 of arrays and bytes, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
        digest.update(b"|")
    return digest.hexdigest()
