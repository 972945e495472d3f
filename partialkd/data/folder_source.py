"""Image folders as a source: `<identity>/<image>` files, class ids in the order of the identities' sorted names.

Errors: `DataError` with the path of the first file that is no image, or identity without one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from partialkd.data.source import check_index, sampled_bytes
from partialkd.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


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
        self.sizes: tuple[int, ...] = (len(self.paths),)
        try:
            sizes = np.array([os.stat(self.folder / path).st_size for path in self.paths], dtype=np.int64)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
        content = sampled_bytes(lambda index: (self.folder / self.paths[index]).read_bytes(), len(self.paths))
        names = "\n".join(self.paths).encode(errors="surrogateescape")
        self.fingerprint = digest_of([names, sizes, self._labels, *content])

    def __len__(self) -> int:
        return len(self.paths)

    def labels(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._labels[start:stop].astype(np.int64)

    def read(self, index: int) -> tuple[bytes, int]:
        check_index(index, len(self))
        try:
            return (self.folder / self.paths[index]).read_bytes(), int(self._labels[index])
        except OSError as error:
            raise DataError(f"{self.name(index)}: cannot be read: {error.strerror}") from error

    def name(self, index: int) -> str:
        return str(self.folder / self.paths[index])

    def readahead(self, start: int, stop: int) -> None:
        """Nothing: every image is a file of its own."""


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
        if not _is(identity.is_dir):
            continue
        label = len(listing.names)
        listing.names.append(identity.name)
        for entry in _visible(Path(identity.path)):
            path = f"{identity.name}/{entry.name}"
            if _is(entry.is_file) and entry.name.lower().endswith(IMAGE_SUFFIXES):
                listing.paths.append(path)
                listing.labels.append(label)
            else:
                listing.problems.append((path, "not an image file (by its name)"))
        if not listing.labels or listing.labels[-1] != label:
            listing.problems.append((identity.name, "identity without an image"))
    if not listing.names:
        raise DataError(f"{folder}: no <identity>/<image> in this folder")
    return listing


def _is(kind: Callable[[], bool]) -> bool:
    """A link that leads round in a circle is no file and no folder."""
    try:
        return kind()
    except OSError:
        return False


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error


def digest_of(parts: Iterable[bytes | np.ndarray]) -> str:
    """SHA-256 of arrays and bytes, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
        digest.update(b"|")
    return digest.hexdigest()
