"""The base of sources: what every set of labelled encoded images offers to loaders and plans.

A source is a fixed order of n images, index 0..n-1. Its labels are checked once, at opening, against
[0, num_classes). `read` gives encoded bytes; decoding is `decode.py`'s. Sources can be read from several threads, after
a fork, and pickled to spawned processes.
Errors: `DataError` with file and record key, or the image's path; `IndexError` for an index outside.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from partialkd.data.images.decode import image_suffix
from partialkd.data.images.orientation import UPRIGHT, orientation
from partialkd.data.sources.identities import Names
from partialkd.errors import DataError, printable
from partialkd.storage.atomic_files import replacing

SAMPLED = 64
CLASS_IDS = "class_ids.txt"  # in a run's folder


class Source(ABC):
    """A set of labelled encoded images in a fixed order: the base of every source.

    A source sets the attributes below and implements the four abstract methods; the others have what suits most.
    """

    num_classes: int
    sizes: tuple[int, ...]  # images of each data set, which lie one after the other; usually there is one
    fingerprint: str  # changes with sizes, order or labels of the data, and with the bytes of SAMPLED images of a set
    names: Names  # of the identities, by class id
    facts: Mapping[str, Any] = MappingProxyType({})  # what was left out of each data set, and why

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def labels(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the class ids (stop - start,) int64 of these images, by default of all."""

    @abstractmethod
    def read(self, index: int) -> tuple[bytes, int]:
        """Read an encoded image and its class id; safe from several threads."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Name the record of an image for error messages: its file, and its key or path there."""

    def embedding(self, index: int) -> np.ndarray:
        """Return the teacher's embedding (D,) float32 that the record of an image carries; DataError without one."""
        raise DataError(f"{self.name(index)}: carries no embedding of a teacher (data.embeddings)")

    def readahead(self, start: int, stop: int) -> None:  # noqa: B027 (nothing is a fit default)
        """Hint to the system that images start..stop-1 will be wanted soon; does nothing where it cannot be given."""

    def origins(self) -> Iterator[tuple[int, int, str]]:
        """Give (class id, number of its data set, identity there) of every identity, in ascending order."""
        names = self.names.known()
        return ((label, 0, str(label) if names is None else names[label]) for label in range(self.num_classes))


def save_class_ids(source: Source, path: Path) -> None:
    """Write a text line for every identity in use: class id, number of its data set, identity there; by tabs."""
    with replacing(path) as (file,):
        file.writelines(f"{label}\t{part}\t{printable(name)}\n".encode() for label, part, name in source.origins())


def sampled_bytes(
    read: Callable[[int], bytes], count: int, image_of: Callable[[bytes], bytes] = lambda content: content
) -> Iterator[bytes]:
    """Hash some of `count` images, evenly spaced, for a fingerprint: other pictures of the same sizes are others.

    An image that cannot be read is no business of a fingerprint: it counts as empty here, and is named when it is used.
    Pictures that lie are marked: they were not turned upright once, and what was computed of them then is of no use.
    image_of: the image in what `read` gives.
    """
    for index in np.unique(np.linspace(0, count - 1, min(count, SAMPLED)).astype(np.int64)).tolist():
        try:
            content = read(index)
            image = image_of(content)
        except (DataError, OSError):
            content = image = b""
        yield hashlib.sha256(content).digest()
        if image_suffix(image) != ".tif" and orientation(image) != UPRIGHT:
            yield b"turned"


def check_index(index: int, length: int) -> None:
    """Raise IndexError unless 0 <= index < length."""
    if not 0 <= index < length:
        raise IndexError(f"index must be in [0, {length}), got {index}")


def digest_of(parts: Iterable[bytes | np.ndarray]) -> str:
    """Compute the SHA-256 of arrays and bytes, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
        digest.update(b"|")
    return digest.hexdigest()
