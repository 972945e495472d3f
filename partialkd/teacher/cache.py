"""The teacher cache keeps a teacher's embeddings of every record, plain and mirrored, in one memory-mapped file.

A folder that is complete or not there at all:
  embeddings.bin   (n, 2, D), little-endian float32, float16 or bfloat16, nothing before or between: number d of record
                   i (m = 0 plain, 1 mirrored) stands at byte ((2 i + m) D + d) x (bytes per number)
  class_means.bin  (C, D) little-endian float32: the mean of the normalised plain embeddings of each class, as the file
                   above holds them; zeros for a class without a record
  manifest.json    "format", "made_from" (what `CacheFacts.made_from` says), "dtype", "shape" [n, 2, D], "classes" C,
                   "block_records" B, and crc32 as eight hexadecimal digits: "blocks" of every B records of
                   embeddings.bin (the last may be shorter), "class_means" of that file
Embeddings are what `Teacher.embed` returns: projected where the teacher is, not normalised. Zeros stand for a record
that could not be read (data.on_corrupt = "skip"); asking for it is an error, and it counts in no mean.

Opening compares the facts and the sizes, which costs nothing; `verify` reads whole blocks and compares their checksums
(about 1 GB/s a core), and what it read stays in the page cache. Training verifies all blocks once, its ranks sharing
them. `rows` reads nothing but the rows asked for, from any thread.
Errors: TeacherError naming the file, what is wrong with it, and both values.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from partialkd.data.images.decode import DECODING
from partialkd.errors import TeacherError
from partialkd.storage.manifest import MANIFEST, read_manifest
from partialkd.storage.mapped_file import MappedFile
from partialkd.world.passes import counted

FORMAT = "partialkd-teacher-cache-1"
EMBEDDINGS, CLASS_MEANS = "embeddings.bin", "class_means.bin"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BLOCK_RECORDS = 1024
_WORDS = {4: "<i4", 2: "<i2"}  # how numpy is to see them: it has no bfloat16
_DIFFERENT = {  # what it means when an entry of `made_from` differs
    "teacher": "was made by another teacher",
    "data": "was made of other data, or of the same in another order",
    "preprocessing": "was made with another preprocessing of the images",
    "dim": "has embeddings of another length",
    "records": "has another number of records",
    "classes": "has another number of classes",
    "dtype": "has another number format",
}


@dataclass(frozen=True)
class CacheFacts:
    """Says what the embeddings of a cache are of: teacher, data, preprocessing and shape."""

    teacher: str  # Teacher.fingerprint
    data: str  # Source.fingerprint
    preprocessing: dict[str, Any]  # image size, resize, decoding, what the teacher is fed, its projection
    records: int
    classes: int
    dim: int
    dtype: str = "fp32"

    @property
    def made_from(self) -> dict[str, Any]:
        return {"teacher": self.teacher, "data": self.data, "preprocessing": self.preprocessing}

    @property
    def record_bytes(self) -> int:
        return 2 * self.dim * DTYPES[self.dtype].itemsize

    @property
    def bytes(self) -> int:
        """Count the bytes of the whole cache, its manifest aside."""
        return self.records * self.record_bytes + 4 * self.classes * self.dim


class KeptEmbeddings(Protocol):
    """Gives a teacher's embeddings without the teacher."""

    dim: int
    fingerprint: str  # of the teacher

    def rows(self, records: Tensor, flipped: Tensor) -> Tensor:
        """Look up embeddings: records (b,) int64, flipped (b,) bool -> (b, D) float32, all on the CPU."""
        ...


class TeacherCache:
    """Opens a complete cache: its facts and its bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.facts, self.block_records, self.sums, self._means_sum = _read_manifest(self.folder)
        self.dim, self.fingerprint = self.facts.dim, self.facts.teacher
        size = self.facts.records * self.facts.record_bytes
        self._embeddings = MappedFile(self.folder / EMBEDDINGS, size, TeacherError)
        self._means = MappedFile(self.folder / CLASS_MEANS, 4 * self.facts.classes * self.dim, TeacherError)
        self._dtype = DTYPES[self.facts.dtype]
        self._rows = self._embeddings.array(_WORDS[self._dtype.itemsize]).reshape(-1, self.dim)  # (2n, D)

    def check(self, wanted: CacheFacts) -> None:
        """Raise TeacherError naming every fact in which this cache is not the wanted one."""
        reasons = [
            f"{_DIFFERENT[key]} ({_short(getattr(self.facts, key))} there, {_short(getattr(wanted, key))} here)"
            for key in _DIFFERENT
            if getattr(self.facts, key) != getattr(wanted, key)
        ]
        if reasons:
            rule = "make it anew with launch/embed.py, or leave out teacher.cache"
            raise TeacherError(f"{self.folder}: this cache {', and '.join(reasons)}; {rule}")

    def verify(self, blocks: range | None = None) -> None:
        """Compare checksums: of these blocks, by default of all; of the class means always."""
        if self._means.checksum() != self._means_sum:
            raise TeacherError(f"{self.folder / CLASS_MEANS}: damaged: its checksum is not the manifest's")
        size = self.block_records * self.facts.record_bytes
        blocks = range(len(self.sums)) if blocks is None else blocks
        for block in counted(blocks, f"checking {self.folder.name}", len(blocks), "blocks"):
            stop = min((block + 1) * size, self._embeddings.size)
            if self._embeddings.checksum(block * size, stop) != self.sums[block]:
                last = min((block + 1) * self.block_records, self.facts.records) - 1
                where = f"{self.folder / EMBEDDINGS}: records {block * self.block_records} to {last}"
                raise TeacherError(f"{where} are damaged: their checksum is not the manifest's")

    def rows(self, records: Tensor, flipped: Tensor) -> Tensor:
        """Look up embeddings: (b,) int64, (b,) bool -> (b, D) float32; TeacherError for a record that has none."""
        at = (records * 2 + flipped).numpy()
        if len(at) and not 0 <= at.min() <= at.max() < len(self._rows):
            raise IndexError(f"records must be in [0, {self.facts.records}), got {records.min()} to {records.max()}")
        self._embeddings.check()
        rows = torch.from_numpy(self._rows[at]).view(self._dtype).float()
        missing = torch.nonzero(~rows.any(1))
        if len(missing):
            rule = "has no embedding: it could not be read when the cache was made"
            raise TeacherError(f"{self.folder}: record {int(records[missing[0]])} {rule}")
        return rows

    def class_means(self, shard: range) -> Tensor:
        """Return the class means (len(shard), D) float32, zeros where a class has no record."""
        self._means.check()
        means = self._means.array("<f4").reshape(-1, self.dim)[shard.start : shard.stop]
        return torch.from_numpy(means.copy())


def kept_before(folder: Path) -> TeacherCache:
    """Open the cache of a folder; TeacherError, saying how to make it, if there is none."""
    if not (Path(folder) / MANIFEST).is_file():
        rule = 'make it with launch/embed.py CONFIG, or let the run make its own: teacher.cache = "auto"'
        raise TeacherError(f"{folder}: holds no teacher cache; {rule}")
    return TeacherCache(folder)


# ------------------------------------------------------------------------------------------------- files


def _read_manifest(folder: Path) -> tuple[CacheFacts, int, list[int], int]:
    """Read what a cache is -> facts, records per block, checksums of the blocks, checksum of the class means."""
    said = read_manifest(folder, TeacherError, FORMAT)
    try:
        records, two, dim = said["shape"]
        facts = CacheFacts(**said["made_from"], records=records, classes=said["classes"], dim=dim, dtype=said["dtype"])
        facts = replace(facts, preprocessing=with_decoding(facts.preprocessing))
        block_records, sums = said["block_records"], [int(text, 16) for text in said["blocks"]]
        numbers = (records, dim, facts.classes, block_records)
        whole = two == 2 and facts.dtype in DTYPES and all(type(n) is int and n > 0 for n in numbers)
        if not whole or len(sums) != -(-records // block_records):
            raise ValueError(f"shape {said['shape']}, {facts.dtype}, {len(sums)} blocks of {block_records} records")
        return facts, block_records, sums, int(said["class_means"], 16)
    except (ValueError, KeyError, TypeError) as error:
        rule = f"not a usable manifest: {type(error).__name__}: {error}"
        raise TeacherError(f"{folder / MANIFEST}: {rule}") from error


def with_decoding(preprocessing: dict[str, Any]) -> dict[str, Any]:
    """Say which decoding made a cache; one of an earlier version does not say it, and is taken as it is."""
    return {"decoding": DECODING, **preprocessing}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text[:12] + "..." if isinstance(value, str) and len(text) > 16 else text
