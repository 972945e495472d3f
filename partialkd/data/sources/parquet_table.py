"""The source of Parquet files: written out once as .rec into the index cache, and read there.

Parquet compresses pages of many rows: to read one image, some hundred are decompressed (docs/measurements.md has what
that costs), which no training in random order can afford. So the images are copied in their order, as they are, into
`<index cache>/parquet-<hash of the files' paths, sizes and times>`, by the first process that wants them; others wait.
Errors: `ConfigError` without `data.index_cache`; `DataError` with file and row.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.data.formats.arrow_file import parquet_images, parquet_labels
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.formats.shard_files import list_shards
from partialkd.data.images.decode import image_size
from partialkd.data.sources.arrow_table import table_classes
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.errors import ConfigError, DataError
from partialkd.storage.made_folder import make_once
from partialkd.world.passes import counted


class ParquetSource(RecordIOSource):
    """Reads the records that were made of Parquet files; errors name the row that a record was."""

    def __init__(self, path: Path, cache: Path | None) -> None:
        paths = list_shards(Path(path), ".parquet")
        if cache is None:
            advice = "set it to a folder with as much room as the images take, or pack them first (launch/pack.py)"
            raise ConfigError(f"data.index_cache is required for Parquet files ({path}): {advice}")
        try:
            stats = [[str(file.resolve()), os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in paths]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
        folder = cache / f"parquet-{hashlib.sha256(repr(stats).encode()).hexdigest()[:32]}"
        rows = make_once(folder, {"files": stats}, lambda new, facts: facts.update(rows=_copy(paths, new)))["rows"]
        super().__init__(folder, cache)
        self.paths, self._ends = paths, list(accumulate(rows))
        self.num_classes, self.names = table_classes(paths[0], self.num_classes)

    def name(self, index: int) -> str:
        number = bisect_right(self._ends, index)
        row = index - (self._ends[number - 1] if number else 0)
        return f"{self.paths[number]}: row {row} ({super().name(index)})"


def _copy(paths: list[Path], folder: Path) -> list[int]:
    """Copy the images into records, in their order -> rows of each file."""
    labels = [parquet_labels(path) for path in paths]
    everything = np.concatenate(labels)
    if not len(everything):
        raise DataError(f"{paths[0]}: holds no row")
    first = next(parquet_images(paths[int(np.argmax([len(some) > 0 for some in labels]))]))
    pairs = zip(_images(paths), everything.tolist(), strict=True)
    images: Iterator[Any] = counted(pairs, "writing the images out of Parquet", len(everything), "images")
    pack_records(folder, images, int(everything.max()) + 1, image_size(first, str(paths[0]))[0], plain=True)
    return [len(some) for some in labels]


def _images(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        yield from parquet_images(path)
