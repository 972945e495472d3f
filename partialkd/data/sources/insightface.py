"""The source of InsightFace folders: train.rec, or parts train.00.rec, train.01.rec, ..., each with its .idx.

Parts are one data set: they share `property` and its class ids, and are read one after the other in the order of
their numbers; keys may repeat between parts, and each may have its own header and identity records.
Opening reads every record's header once (record_file.py), unless a `cache` folder keeps what came out (index_cache.py).

With `embeddings` = D every image record carries D + 1 float labels: a teacher's embedding of the image, then the class
id (the form of MarginDistillation's records). Without, the first label is the class id.
Errors: `DataError` with file, and record key where there is one.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from partialkd.data.formats.insightface_folder import IDX, NAMES, PROPERTY, REC
from partialkd.data.formats.property_file import read_property
from partialkd.data.formats.recordio import RecordReader
from partialkd.data.sources.files import FilesSource
from partialkd.data.sources.identities import Names
from partialkd.data.sources.record_file import RecordFile
from partialkd.errors import DataError

_PART = re.compile(r"train\.(\d+)\.(rec|idx)")


class RecordIOSource(FilesSource[RecordFile]):
    """Reads an unmodified InsightFace folder of one or more .rec files, with or without header records."""

    def __init__(self, folder: Path, cache: Path | None = None, embeddings: int | None = None) -> None:
        folder, self.embeddings = Path(folder), embeddings
        classes, self.height, self.width = read_property(folder / PROPERTY)
        files = [RecordFile.opened(rec, idx, classes, cache, embeddings) for rec, idx in record_files(folder)]
        super().__init__(files, classes, Names(classes, None, folder / NAMES))

    @property
    def reader(self) -> RecordReader:
        """Return the reader of the first file."""
        return self.files[0].reader

    def embedding(self, index: int) -> np.ndarray:
        if self.embeddings is None:
            return super().embedding(index)
        file, at = self.locate(index)
        labels, _ = file.reader.read(int(file.positions[at]))
        return labels[: self.embeddings]

    def stem(self, index: int) -> str:
        """Give every image a file name of its own: its key, behind the part's number where there are several."""
        file, at = self.locate(index)
        key = f"{file.reader.key(int(file.positions[at])):08d}"
        return key if len(self.files) == 1 else f"{self.files.index(file):02d}_{key}"


def record_files(folder: Path) -> list[tuple[Path, Path]]:
    """List the .rec files of a folder with their .idx, in the order of their numbers."""
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
