"""Where labelled encoded images come from: InsightFace folders, image folders, or a generator in memory.

A source is a fixed order of n images, index 0..n-1. Its labels (n,) int64 are checked once, at opening, against
[0, num_classes). `read` gives encoded bytes; decoding is `decode.py`'s. Sources can be read from several threads, after
a fork, and pickled to spawned processes.
Errors: `DataError` with file and record key, or the image's path.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from partialkd.config import DataConfig
from partialkd.data.decode import encode_jpeg
from partialkd.data.layout import IDX, PROPERTY, REC, image_positions, read_property
from partialkd.data.recordio import RecordReader
from partialkd.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class Source(Protocol):
    """A set of labelled encoded images in a fixed order."""

    num_classes: int
    fingerprint: str  # changes when sizes, order or labels of the data change

    def __len__(self) -> int: ...

    def labels(self) -> np.ndarray:
        """(n,) int64 class ids."""
        ...

    def read(self, index: int) -> tuple[bytes, int]:
        """Encoded image and class id; safe from several threads."""
        ...

    def name(self, index: int) -> str:
        """The record, for error messages."""
        ...


class RecordIOSource:
    """An unmodified InsightFace folder: train.rec, train.idx, property; with or without a header record."""

    def __init__(self, folder: Path) -> None:
        folder = Path(folder)
        self.num_classes, self.height, self.width = read_property(folder / PROPERTY)
        self.reader = RecordReader(folder / REC, folder / IDX)
        headers = self.reader.headers()
        self.positions = image_positions(self.reader.keys, headers, str(folder / REC))
        labels = headers.labels[self.positions]
        self._check(labels, headers.image_bytes[self.positions])
        self._labels = labels.astype(np.int32)
        self.fingerprint = _hash([np.array([self.reader.size, self.num_classes]), *self._arrays()])

    def _check(self, labels: np.ndarray, image_bytes: np.ndarray) -> None:
        valid = (labels >= 0) & (labels < self.num_classes) & (labels == np.floor(labels))
        for good, rule in (
            (valid, f"label must be an integer in [0, {self.num_classes})"),
            (image_bytes > 0, "the record holds no image"),
        ):
            if not good.all():
                index = int(np.argmin(good))
                problem = f"{rule}, got {labels[index]}" if good is valid else rule
                more = f" ({len(good) - np.count_nonzero(good)} such records)"
                raise DataError(f"{self.reader.where(int(self.positions[index]))}: {problem}{more}")

    def _arrays(self) -> Iterable[np.ndarray]:
        return (self.reader.keys, self.reader.offsets, self._labels)

    def __len__(self) -> int:
        return len(self.positions)

    def labels(self) -> np.ndarray:
        return self._labels.astype(np.int64)

    def read(self, index: int) -> tuple[bytes, int]:
        _check_index(index, len(self))
        _, image = self.reader.read(int(self.positions[index]))
        return image, int(self._labels[index])

    def name(self, index: int) -> str:
        return self.reader.where(int(self.positions[index]))


class FolderSource:
    """`<identity>/<image>` files; class ids in the order of the identities' sorted names."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        listing = list_folder(self.folder)
        if listing.problems:
            path, reason = listing.problems[0]
            raise DataError(f"{path}: {reason} ({len(listing.problems)} such problems in {folder})")
        self.names, self.paths = listing.names, listing.paths
        self.num_classes = len(self.names)
        self._labels = np.array(listing.labels, dtype=np.int32)
        sizes = np.array([os.stat(self.folder / path).st_size for path in self.paths], dtype=np.int64)
        self.fingerprint = _hash(["\n".join(self.paths).encode(), sizes, self._labels])

    def __len__(self) -> int:
        return len(self.paths)

    def labels(self) -> np.ndarray:
        return self._labels.astype(np.int64)

    def read(self, index: int) -> tuple[bytes, int]:
        _check_index(index, len(self))
        try:
            return (self.folder / self.paths[index]).read_bytes(), int(self._labels[index])
        except OSError as error:
            raise DataError(f"{self.name(index)}: cannot be read: {error.strerror}") from error

    def name(self, index: int) -> str:
        return str(self.folder / self.paths[index])


class Listing:
    """What `list_folder` found: names by class id, paths relative to the folder with their labels, problems."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.paths: list[str] = []
        self.labels: list[int] = []
        self.problems: list[tuple[str, str]] = []  # path, reason


def list_folder(folder: Path) -> Listing:
    """All `<identity>/<image>` of a folder, sorted. Hidden files and files beside the identities are not looked at."""
    listing = Listing()
    for identity in _visible(folder):
        if not identity.is_dir():
            continue
        label = len(listing.names)
        listing.names.append(identity.name)
        for entry in _visible(Path(identity.path)):
            path = f"{identity.name}/{entry.name}"
            if entry.is_file() and entry.name.lower().endswith(IMAGE_SUFFIXES):
                listing.paths.append(path)
                listing.labels.append(label)
            else:
                listing.problems.append((path, "not an image file (by its name)"))
        if not listing.labels or listing.labels[-1] != label:
            listing.problems.append((identity.name, "identity without an image"))
    if not listing.names:
        raise DataError(f"{folder}: no <identity>/<image> in this folder")
    return listing


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error


class SyntheticSource:
    """Noise on a gradient, a colour pair an identity, as JPEG made on the fly: nothing is on disk.

    Image i is of identity i % num_classes and a function of (seed, i) only.
    """

    def __init__(self, num_classes: int, num_images: int, image_size: int, seed: int = 0) -> None:
        self.num_classes, self.num_images, self.image_size, self.seed = num_classes, num_images, image_size, seed
        self.fingerprint = _hash([f"synthetic {num_classes} {num_images} {image_size} {seed}".encode()])

    def __len__(self) -> int:
        return self.num_images

    def labels(self) -> np.ndarray:
        return np.arange(self.num_images, dtype=np.int64) % self.num_classes

    def read(self, index: int) -> tuple[bytes, int]:
        _check_index(index, len(self))
        label = index % self.num_classes
        left, right = np.random.default_rng((self.seed, 0, label)).uniform(32, 224, (2, 3))
        ramp = np.linspace(0, 1, self.image_size)[None, :, None]
        noise = np.random.default_rng((self.seed, 1, index)).normal(0, 16, (self.image_size, self.image_size, 3))
        pixels = left * (1 - ramp) + right * ramp + noise
        return encode_jpeg(pixels.clip(0, 255).astype(np.uint8), quality=90), label

    def name(self, index: int) -> str:
        return f"synthetic image {index}"


def open_source(data: DataConfig) -> Source:
    """The source that `data.source` and `data.path` name."""
    if data.source == "synthetic":
        return SyntheticSource(data.synthetic_identities, data.synthetic_images, data.image_size)
    if data.source == "folder":
        return FolderSource(Path(data.path))
    source = RecordIOSource(Path(data.path))
    if not data.resize and (source.height, source.width) != (data.image_size, data.image_size):
        rule = f"data.image_size is {data.image_size} and data.resize is false"
        raise DataError(f"{Path(data.path) / PROPERTY}: images are {source.height} x {source.width}, but {rule}")
    return source


def _check_index(index: int, length: int) -> None:
    if not 0 <= index < length:
        raise IndexError(f"index must be in [0, {length}), got {index}")


def _hash(parts: Iterable[bytes | np.ndarray]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
        digest.update(b"|")
    return digest.hexdigest()
