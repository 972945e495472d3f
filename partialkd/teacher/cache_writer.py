"""Write a teacher cache (cache.py) block by block, by any number of processes, again and again until it is whole.

While it is made everything lies in `.<name>.partial` beside the folder's later name; when all is written and on the
disk, that takes its name. In there, beside the files to be:
  facts.json   what the cache will be; work is gone on with only where it is equal
  blocks.bin   8 bytes per block: crc32 and its complement, both uint32 little-endian, written once the block is on the
               disk. Anything else (zeros, a torn write) means that the block is still to be made.
A process writes only its own blocks and their entries, so no two write to one place.
Errors: TeacherError naming the file or the record; StorageError where a file cannot be written.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from partialkd.errors import TeacherError
from partialkd.storage.atomic_files import discard, naming, publish, write_json
from partialkd.storage.checksum import crc32, crc32_of_file, hexadecimal
from partialkd.storage.manifest import MANIFEST, write_manifest
from partialkd.teacher.cache import (
    BLOCK_RECORDS,
    CLASS_MEANS,
    DTYPES,
    EMBEDDINGS,
    FORMAT,
    CacheFacts,
    with_decoding,
)

Unfinished = Literal["refuse", "resume", "replace"]  # "replace": gone on with if it is of the same, else begun anew
_FACTS, _BLOCKS = "facts.json", "blocks.bin"
_ENTRY = struct.Struct("<II")


class CacheWriter:
    """Writes one process's part: `begin` on one of them, then `CacheWriter` on each, `finish` on one."""

    def __init__(self, folder: Path, facts: CacheFacts, block_records: int = BLOCK_RECORDS) -> None:
        self.folder, self.facts, self.block_records = Path(folder), facts, block_records
        self.place = partial(self.folder)
        self.blocks = -(-facts.records // block_records)

    def begin(self, unfinished: Unfinished) -> None:
        """Make the place, or find it made. On one process, before the others look."""
        if (self.folder / MANIFEST).exists() or (self.folder.exists() and any(self.folder.iterdir())):
            raise TeacherError(f"{self.folder}: already exists; nothing is overwritten, remove it or choose another")
        said = {**asdict(self.facts), "block_records": self.block_records}
        if (self.place / _FACTS).exists():
            if unfinished == "refuse":
                raise TeacherError(f"{self.place}: an unfinished cache; go on with it (--resume) or remove it")
            problem = self._problem(json.loads(json.dumps(said)))
            if problem is None:
                return
            if unfinished == "resume":
                raise TeacherError(f"{problem}; remove {self.place}")
        discard(self.place)  # what a start broke off before it said what it was
        with naming(self.place):
            self.place.mkdir(parents=True)
            free = shutil.disk_usage(self.place).free
            if free < self.facts.bytes:
                raise TeacherError(f"{self.folder}: the cache takes {self.facts.bytes} bytes, {free} are free there")
            for name, size in self._sizes().items():
                with (self.place / name).open("wb") as file:
                    file.truncate(size)
        write_json(self.place / _FACTS, said)

    def _problem(self, wanted: dict[str, Any]) -> str | None:
        """Say why what lies in the place cannot be gone on with: of something else, or damaged."""
        path = self.place / _FACTS
        try:
            found = json.loads(path.read_bytes())
            found["preprocessing"] = with_decoding(found["preprocessing"])
            wanted = {**wanted, "preprocessing": with_decoding(wanted["preprocessing"])}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return f"{path}: damaged: {type(error).__name__}: {error}"
        different = [key for key in wanted if found.get(key) != wanted[key]]
        if different:
            return f"{self.place}: an unfinished cache of something else (different: {', '.join(different)})"
        for name, size in self._sizes().items():
            try:
                self._check_size(self.place / name, size)
            except TeacherError as error:
                return str(error)
        return None

    @staticmethod
    def _check_size(path: Path, size: int) -> None:
        try:
            length = path.stat().st_size if path.is_file() else -1
        except OSError as error:
            raise TeacherError(f"{path}: cannot be read: {error.strerror}") from error
        if length != size:
            raise TeacherError(f"{path}: must have {size} bytes, got {'no file' if length < 0 else length}")

    def _sizes(self) -> dict[str, int]:
        facts = self.facts
        return {
            EMBEDDINGS: facts.records * facts.record_bytes,
            CLASS_MEANS: 4 * facts.classes * facts.dim,
            _BLOCKS: _ENTRY.size * self.blocks,
        }

    def missing(self) -> list[int]:
        """List the blocks that are still to be made."""
        return [block for block, total in enumerate(self._sums()) if total is None]

    def records(self, block: int) -> range:
        return range(block * self.block_records, min((block + 1) * self.block_records, self.facts.records))

    def write_block(self, block: int, rows: Tensor, name: Callable[[int], str]) -> None:
        """Write rows (records of the block, 2, D) float32, on any device; `name`: of a record that cannot be kept."""
        records = self.records(block)
        assert rows.shape == (len(records), 2, self.facts.dim), rows.shape
        data = self._encoded(rows, records, name)
        _put(self.place / EMBEDDINGS, records.start * self.facts.record_bytes, data)
        total = crc32(data)
        _put(self.place / _BLOCKS, block * _ENTRY.size, _ENTRY.pack(total, total ^ 0xFFFFFFFF))

    def _encoded(self, rows: Tensor, records: range, name: Callable[[int], str]) -> bytes:
        kept = rows.to(DTYPES[self.facts.dtype])
        bad = torch.nonzero(~kept.isfinite().all(2))
        if len(bad):
            index, mirrored = bad[0].tolist()
            largest = rows[index, mirrored].abs().max().item()
            what = "is not finite" if largest != largest or largest == float("inf") else f"reaches {largest:.6g}"
            limit = f", {self.facts.dtype} holds at most {torch.finfo(kept.dtype).max:.6g}" if "reaches" in what else ""
            image = "mirrored " if mirrored else ""
            raise TeacherError(f"{name(records[index])}: its {image}embedding {what}{limit}")
        return kept.cpu().contiguous().view(torch.uint8).numpy().tobytes()

    def read_block(self, block: int) -> Tensor:
        """Read the rows (records, 2, D) float32 of a block that was written."""
        records, size = self.records(block), self.facts.record_bytes
        path = self.place / EMBEDDINGS
        try:
            with path.open("rb") as file:
                data = bytearray(os.pread(file.fileno(), len(records) * size, records.start * size))
        except OSError as error:
            raise TeacherError(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) != len(records) * size:
            raise TeacherError(f"{path}: was cut while the cache was made: it ends before record {records.stop - 1}")
        kept = torch.frombuffer(data, dtype=DTYPES[self.facts.dtype])
        return kept.view(len(records), 2, self.facts.dim).float()

    def write_means(self, shard: range, means: Tensor) -> None:
        """Write the means (len(shard), D) float32 of these classes."""
        _put(self.place / CLASS_MEANS, 4 * shard.start * self.facts.dim, means.cpu().numpy().astype("<f4").tobytes())

    def finish(self) -> None:
        """Give the cache its name. On one process, once all have written."""
        sums = [total for total in self._sums() if total is not None]
        if len(sums) != self.blocks:
            raise TeacherError(f"{self.place / _BLOCKS}: was changed while the cache was made")
        facts = self.facts
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "made_from": facts.made_from,
            "dtype": facts.dtype,
            "shape": [facts.records, 2, facts.dim],
            "classes": facts.classes,
            "block_records": self.block_records,
            "class_means": hexadecimal(crc32_of_file(self.place / CLASS_MEANS)),
            "blocks": [hexadecimal(total) for total in sums],
        }
        write_manifest(self.place, manifest)
        for name in (_FACTS, _BLOCKS):
            (self.place / name).unlink()
        publish(self.place, self.folder)

    def _sums(self) -> list[int | None]:
        path = self.place / _BLOCKS
        self._check_size(path, _ENTRY.size * self.blocks)
        try:
            entries = np.frombuffer(path.read_bytes(), "<u4").reshape(-1, 2)
        except OSError as error:
            raise TeacherError(f"{path}: cannot be read: {error.strerror}") from error
        return [total if total ^ 0xFFFFFFFF == other else None for total, other in entries.tolist()]


def partial(folder: Path) -> Path:
    """Say where a cache lies while it is made."""
    return folder.with_name(f".{folder.name}.partial")


def _put(path: Path, at: int, data: bytes) -> None:
    """Write bytes into a file that has its size already; they are on the disk when this returns."""
    view = memoryview(data)
    with naming(path), path.open("r+b", buffering=0) as file:
        while view:
            written = os.pwrite(file.fileno(), view, at)
            view, at = view[written:], at + written
        os.fsync(file.fileno())
