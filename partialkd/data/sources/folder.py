"""The source of image folders: `<identity>/<image>` files, class ids in the order of the sorted names.

Errors: `DataError` with the path of the first file that is no image, or identity without one.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from partialkd.data.formats.image_tree import list_folder, read_file
from partialkd.data.sources.identities import Names
from partialkd.data.sources.source import Source, check_index, digest_of, sampled_bytes
from partialkd.errors import DataError


class FolderSource(Source):
    """Reads `<identity>/<image>` files; class ids are in the order of the identities' sorted names."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        listing = list_folder(self.folder)
        if listing.problems:
            path, reason = listing.problems[0]
            raise DataError(f"{path}: {reason} ({len(listing.problems)} such problems in {folder})")
        self.num_classes, self.paths = len(listing.names), listing.paths
        self.names = Names(self.num_classes, listing.names)
        self._labels = np.array(listing.labels, dtype=np.int32)
        self.sizes: tuple[int, ...] = (len(self.paths),)
        try:
            sizes = np.array([os.stat(self.folder / path).st_size for path in self.paths], dtype=np.int64)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
        content = sampled_bytes(lambda index: read_file(self.folder / self.paths[index]), len(self.paths))
        names = "\n".join(self.paths).encode(errors="surrogateescape")
        self.fingerprint = digest_of([names, sizes, self._labels, *content])

    def __len__(self) -> int:
        return len(self.paths)

    def labels(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._labels[start:stop].astype(np.int64)

    def read(self, index: int) -> tuple[bytes, int]:
        check_index(index, len(self))
        try:
            return read_file(self.folder / self.paths[index]), int(self._labels[index])
        except OSError as error:
            raise DataError(f"{self.name(index)}: cannot be read: {error.strerror}") from error

    def name(self, index: int) -> str:
        return str(self.folder / self.paths[index])
