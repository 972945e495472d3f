"""Find the images of one .rec file, where they stand in it and their class ids, by one scan of all record headers.

Memory: 12 bytes per record (offset and class id), 8 more where the keys of a file are not consecutive, 8 more where
its images do not lie together among its records.
Errors: `DataError` with file and record key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from partialkd.data.formats.insightface_folder import image_positions
from partialkd.data.formats.recordio import Headers, RecordReader, unpack_payload
from partialkd.data.sources.files import DataFile, add_numbers
from partialkd.data.sources.index_cache import Index, open_index
from partialkd.data.sources.source import sampled_bytes
from partialkd.errors import DataError


class RecordFile(DataFile):
    """The images of one .rec: `positions` among its records and `labels` (n,) int32, both in the order of keys."""

    def __init__(self, reader: RecordReader, index: Index) -> None:
        super().__init__(index)
        self.reader, self.positions = reader, index.arrays["positions"]

    @classmethod
    def opened(
        cls, rec: Path, idx: Path | None, num_classes: int, cache: Path | None = None, embeddings: int | None = None
    ) -> RecordFile:
        """Open a .rec file, its index from the cache where it has been opened before."""
        find = lambda: _find(rec, idx, num_classes, embeddings)
        index = open_index([rec, *([idx] if idx else [])], ("rec", num_classes, embeddings), cache, find)
        return cls(RecordReader.parsed(rec, index.arrays["numbers"], index.arrays["offsets"]), index)

    def image(self, at: int) -> bytes:
        _, image = self.reader.read(int(self.positions[at]))
        return image

    def where(self, at: int) -> str:
        return self.reader.where(int(self.positions[at]))

    def readahead(self, start: int, stop: int) -> None:
        self.reader.readahead(int(self.positions[start]), int(self.positions[stop - 1]) + 1)


def _find(rec: Path, idx: Path | None, num_classes: int, embeddings: int | None) -> Index:
    """Read the index and every record's header; DataError naming the first record that no training can use."""
    reader = RecordReader(rec, idx)
    found = image_positions(reader.numbers, reader.first_header(), str(rec))
    positions, labels = _labels(reader, found, num_classes, embeddings)
    digest = hashlib.sha256(np.array([reader.size, num_classes]).data)
    for values in (reader.numbers, reader.offsets, labels):
        add_numbers(digest, values)
    digest.update(b"|")
    payload: Callable[[int], bytes] = lambda index: reader.payload(int(positions[index]))
    for content in sampled_bytes(payload, len(positions), lambda record: unpack_payload(record, str(rec))[1]):
        digest.update(content)
    arrays = {"numbers": reader.numbers, "offsets": reader.offsets, "positions": positions, "labels": labels}
    return Index(digest.hexdigest(), arrays)


def _labels(
    reader: RecordReader, positions: range | None, num_classes: int, embeddings: int | None
) -> tuple[range | np.ndarray, np.ndarray]:
    """Return positions and class ids of the images; positions None: of all records that hold an image."""
    labels = np.empty(len(reader) if positions is None else len(positions), dtype=np.int32)
    kept: list[np.ndarray] = []
    problems = _Problems(reader, num_classes, embeddings)
    filled = 0
    for start, headers in reader.scan():
        at = np.arange(start, start + len(headers.labels))
        if positions is None:
            chosen = headers.image_bytes > 0
            kept.append(at[chosen])
        else:
            chosen = (at >= positions.start) & (at < positions.stop)
        problems.look(at[chosen], headers, chosen)
        with np.errstate(invalid="ignore"):  # what is no number is refused below
            values = (headers.last if embeddings else headers.labels)[chosen].astype(np.int32)
        labels[filled : filled + len(values)] = values
        filled += len(values)
    problems.refuse()
    if positions is not None:
        return positions, labels
    return _as_range(np.concatenate(kept)), labels[:filled].copy()


def _as_range(positions: np.ndarray) -> range | np.ndarray:
    if len(positions) and positions[-1] - positions[0] == len(positions) - 1:
        return range(int(positions[0]), int(positions[-1]) + 1)
    return positions


class _Problems:
    """Remembers the first record that breaks each rule, and how many do."""

    def __init__(self, reader: RecordReader, num_classes: int, embeddings: int | None) -> None:
        self.reader, self.num_classes, self.embeddings = reader, num_classes, embeddings
        # records, position of the first, its value
        self.lengths, self.labels, self.images = [0, -1, 0.0], [0, -1, 0.0], [0, -1, 0.0]

    def look(self, positions: np.ndarray, headers: Headers, chosen: np.ndarray) -> None:
        labels, flags = (headers.last if self.embeddings else headers.labels)[chosen], headers.flags[chosen]
        valid = (labels >= 0) & (labels < self.num_classes) & (labels == np.floor(labels))
        whole = np.full(len(flags), True) if self.embeddings is None else flags == self.embeddings + 1
        images = headers.image_bytes[chosen] > 0
        for found, good, values in (
            (self.lengths, whole, flags),
            (self.labels, valid, labels),
            (self.images, images, labels),
        ):
            bad = np.flatnonzero(~good)
            if len(bad) and not found[0]:
                found[1:] = [int(positions[bad[0]]), values[bad[0]]]
            found[0] += len(bad)

    def refuse(self) -> None:
        label_rule = f"label must be an integer in [0, {self.num_classes}), got {self.labels[2]}"
        length_rule = (
            f"must carry {(self.embeddings or 0) + 1} labels, the {self.embeddings} of an embedding and the class id "
            f"(data.embeddings), got {max(int(self.lengths[2]), 1)}"
        )
        rules = (self.lengths, length_rule), (self.labels, label_rule), (self.images, "the record holds no image")
        for (count, position, _), rule in rules:
            if count:
                raise DataError(f"{self.reader.where(int(position))}: {rule} ({count} such records)")
