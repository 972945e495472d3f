"""InsightFace folders as a source: train.rec, or parts train.00.rec, train.01.rec, ..., each with its .idx.

Parts are one data set: they share `property` and its class ids, and are read one after the other in the order of
their numbers; keys may repeat between parts, and each may have its own header and identity records.
Memory: 12 bytes a record (offset and class id), 8 more where the keys of a file are not consecutive, 8 more where
its images do not lie together among its records.

Opening reads every record's header once: one small read a record, which takes long for files of 1e8 records on a
disk that seeks. With a `cache` folder what came out is kept there, named by the files' path, sizes and times, and
memory-mapped by later starts: the ranks of a host then hold one copy between them.

With `embeddings` = D every image record carries D + 1 float labels: a teacher's embedding of the image, then the class
id (the form of MarginDistillation's records). Without, the first label is the class id.
Errors: `DataError` with file, and record key where there is one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_right
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.data.formats.insightface_folder import IDX, NAMES, PROPERTY, REC, image_positions, read_property
from partialkd.data.formats.recordio import Headers, RecordReader
from partialkd.data.sources.identities import Names
from partialkd.data.sources.source import Source, check_index, sampled_bytes
from partialkd.errors import DataError
from partialkd.storage.atomic_files import new_folder, write_json

_PART = re.compile(r"train\.(\d+)\.(rec|idx)")
_CHUNK = 1 << 20  # elements hashed in one go
_FORMAT = 2  # of the cache
_ARRAYS = ("numbers", "offsets", "positions", "labels")  # in it


class RecordFile:
    """The images of one .rec: `positions` among its records and `labels` (n,) int32, both in the order of keys."""

    def __init__(self, reader: RecordReader, positions: range | np.ndarray, labels: np.ndarray, digest: str) -> None:
        self.reader, self.positions, self.labels, self.digest = reader, positions, labels, digest

    def __len__(self) -> int:
        return len(self.positions)

    @classmethod
    def scanned(cls, rec: Path, idx: Path, num_classes: int, embeddings: int | None = None) -> RecordFile:
        """Read the index and every record's header; DataError naming the first record that no training can use."""
        reader = RecordReader(rec, idx)
        found = image_positions(reader.numbers, reader.first_header(), str(rec))
        positions, labels = _labels(reader, found, num_classes, embeddings)
        digest = hashlib.sha256(np.array([reader.size, num_classes]).data)
        for values in (reader.numbers, reader.offsets, labels):
            digest.update(b"|")
            for start in range(0, len(values), _CHUNK):
                some = values[start : start + _CHUNK]
                some = np.arange(some.start, some.stop) if isinstance(some, range) else np.ascontiguousarray(some)
                digest.update(some.data)
        digest.update(b"|")
        for content in sampled_bytes(lambda index: reader.payload(positions[index]), len(positions)):
            digest.update(content)
        return cls(reader, positions, labels, digest.hexdigest())


def _labels(
    reader: RecordReader, positions: range | None, num_classes: int, embeddings: int | None
) -> tuple[range | np.ndarray, np.ndarray]:
    """Positions and class ids of the images; positions None: of all records that hold an image."""
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
    """The first record that breaks each rule, and how many do."""

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


class RecordIOSource(Source):
    """An unmodified InsightFace folder of one or more .rec files; with or without header records."""

    def __init__(self, folder: Path, cache: Path | None = None, embeddings: int | None = None) -> None:
        folder, self.embeddings = Path(folder), embeddings
        self.num_classes, self.height, self.width = read_property(folder / PROPERTY)
        self.names = Names(self.num_classes, None, folder / NAMES)
        self.files = [open_file(rec, idx, self.num_classes, cache, embeddings) for rec, idx in record_files(folder)]
        self._starts = [0, *accumulate(len(file) for file in self.files)]
        self.sizes: tuple[int, ...] = (len(self),)
        digests = [file.digest for file in self.files]
        self.fingerprint = digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()

    @property
    def reader(self) -> RecordReader:
        """Of the first file."""
        return self.files[0].reader

    def __len__(self) -> int:
        return self._starts[-1]

    def labels(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        stop = len(self) if stop is None else stop
        parts = [
            file.labels[max(start - first, 0) : max(stop - first, 0)]
            for file, first in zip(self.files, self._starts, strict=False)
        ]
        return np.concatenate(parts).astype(np.int64)

    def locate(self, index: int) -> tuple[RecordFile, int]:
        """The file of an image, and its place among the file's images."""
        check_index(index, len(self))
        number = bisect_right(self._starts, index) - 1
        return self.files[number], index - self._starts[number]

    def read(self, index: int) -> tuple[bytes, int]:
        file, at = self.locate(index)
        _, image = file.reader.read(int(file.positions[at]))
        return image, int(file.labels[at])

    def embedding(self, index: int) -> np.ndarray:
        if self.embeddings is None:
            return super().embedding(index)
        file, at = self.locate(index)
        labels, _ = file.reader.read(int(file.positions[at]))
        return labels[: self.embeddings]

    def name(self, index: int) -> str:
        file, at = self.locate(index)
        return file.reader.where(int(file.positions[at]))

    def stem(self, index: int) -> str:
        """A file name of its own for every image: its key, behind the part's number where there are several."""
        file, at = self.locate(index)
        key = f"{file.reader.key(int(file.positions[at])):08d}"
        return key if len(self.files) == 1 else f"{self.files.index(file):02d}_{key}"

    def readahead(self, start: int, stop: int) -> None:
        """Have the system read images start..stop-1, which may lie in several files, into its page cache."""
        while start < stop:
            file, at = self.locate(start)
            count = min(stop - start, len(file) - at)
            file.reader.readahead(int(file.positions[at]), int(file.positions[at + count - 1]) + 1)
            start += count


def record_files(folder: Path) -> list[tuple[Path, Path]]:
    """The .rec files of a folder with their .idx, in the order of their numbers."""
    found: dict[str, set[int]] = {"rec": set(), "idx": set()}
    paths: dict[tuple[str, int], Path] = {}
    for path in sorted(folder.iterdir()):
        if match := _PART.fullmatch(path.name):
            number, kind = int(match[1]), match[2]
            if number in found[kind]:
                raise DataError(f"{path}: there is a part of this number already: {paths[kind, number].name}")
            found[kind].add(number)
            paths[kind, number] = path
    if not found["rec"] | found["idx"]:
        return [(folder / REC, folder / IDX)]
    if (folder / REC).exists():
        raise DataError(f"{folder}: holds {REC} and parts train.*.rec; one of them must go")
    numbers = sorted(found["rec"] | found["idx"])
    for number in range(min(numbers[0], 1), numbers[-1] + 1):
        for kind in ("rec", "idx"):
            if number not in found[kind]:
                raise DataError(f"{folder}: part {number} has no .{kind} (parts go up to {numbers[-1]})")
    return [(paths["rec", number], paths["idx", number]) for number in numbers]


# ------------------------------------------------------------------------------------------ index cache


def open_file(rec: Path, idx: Path, num_classes: int, cache: Path | None, embeddings: int | None = None) -> RecordFile:
    """A .rec file, from the cache where it has been opened before."""
    if cache is None:
        return RecordFile.scanned(rec, idx, num_classes, embeddings)
    place = cache / _cache_name(rec, idx, num_classes, embeddings)
    if not place.is_dir():
        file = RecordFile.scanned(rec, idx, num_classes, embeddings)
        if place.name == _cache_name(rec, idx, num_classes, embeddings):  # else it was written to meanwhile
            _keep(file, place)
        return file
    try:
        facts = json.loads((place / "facts.json").read_text(encoding="utf-8"))
        values: dict[str, Any] = {
            name: range(*facts[name]) if name in facts else np.load(place / f"{name}.npy", "r", allow_pickle=False)
            for name in _ARRAYS
        }
        reader = RecordReader.parsed(rec, values["numbers"], values["offsets"])
        return RecordFile(reader, values["positions"], values["labels"], facts["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place}: not a usable index; remove it ({type(error).__name__}: {error})") from error


def _cache_name(rec: Path, idx: Path, num_classes: int, embeddings: int | None) -> str:
    """Of path, size and time of the files, and whatever else the content hangs on."""
    try:
        stats = [(str(path.resolve()), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in (rec, idx)]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return hashlib.sha256(repr((_FORMAT, num_classes, embeddings, stats)).encode()).hexdigest()[:32]


def _keep(file: RecordFile, place: Path) -> None:
    """Keep the parsed index; where another rank was faster, its own stays."""
    facts: dict[str, Any] = {"rec": str(file.reader.path), "digest": file.digest}
    reader = file.reader
    arrays = (reader.numbers, reader.offsets, file.positions, file.labels)
    with suppress(FileExistsError), new_folder(place) as hidden:
        for name, values in zip(_ARRAYS, arrays, strict=True):
            if isinstance(values, range):
                facts[name] = [values.start, values.stop]
            else:
                np.save(hidden / f"{name}.npy", values, allow_pickle=False)
        write_json(hidden / "facts.json", facts)
