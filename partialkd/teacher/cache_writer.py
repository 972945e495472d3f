"""Writing a teacher cache (cache.py): block by block, by any number of processes, again and again until whole.

While it is made everything lies in `.<name>.partial` beside the folder's later name; when all is written and on the
disk, that takes its name. In there, beside the files to be:
  facts.json   what the cache will be; work is gone on with only where it is equal
  blocks.bin   8 bytes a block: crc32 and its complement, both uint32 little-endian, written once the block is on the
               disk. Anything else (zeros, a torn write) means that the block is still to be made.
A process writes only its own blocks and their entries, so no two write to one place.
Errors: TeacherError naming the folder or the record; OSError as it comes.
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
from partialkd.storage.atomic_files import publish, write_json
from partialkd.storage.checksum import crc32, crc32_of_file, hexadecimal
from partialkd.storage.manifest import MANIFEST, write_manifest
from partialkd.teacher.cache import (
    BLOCK_RECORDS,
    CLASS_MEANS,
    DTYPES,
    EMBEDDINGS,
    FORMAT,
    CacheFacts,
)

Unfinished = Literal["refuse", "resume", "replace"]  # "replace": gone on with if it is of the same, else begun anew
_FACTS, _BLOCKS = "facts.json", "blocks.bin"
_ENTRY = struct.Struct("<II")


class CacheWriter:
    """Of one process. `begin` on one of them, then `CacheWriter` on each, `finish` on one."""

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
            found, wanted = json.loads((self.place / _FACTS).read_text(encoding="utf-8")), json.loads(json.dumps(said))
            different = [key for key in wanted if found.get(key) != wanted[key]]
            if not different:
                return
            if unfinished == "resume":
                rule = f"an unfinished cache of something else (different: {', '.join(different)}); remove it"
                raise TeacherError(f"{self.place}: {rule}")
        shutil.rmtree(self.place, ignore_errors=True)  # what a start broke off before it said what it was
        self.place.mkdir(parents=True)
        free = shutil.disk_usage(self.place).free
        if free < self.facts.bytes:
            raise TeacherError(f"{self.folder}: the cache takes {self.facts.bytes} bytes, {free} are free there")
        for name, size in self._sizes().items():
            with (self.place / name).open("wb") as file:
                file.truncate(size)
        write_json(self.place / _FACTS, said)

    def _sizes(self) -> dict[str, int]:
        facts = self.facts
        return {
            EMBEDDINGS: facts.records * facts.record_bytes,
            CLASS_MEANS: 4 * facts.classes * facts.dim,
            _BLOCKS: _ENTRY.size * self.blocks,
        }

    def missing(self) -> list[int]:
        """Blocks that are still to be made."""
        return [block for block, total in enumerate(self._sums()) if total is None]

    def records(self, block: int) -> range:
        return range(block * self.block_records, min((block + 1) * self.block_records, self.facts.records))

    def write_block(self, block: int, rows: Tensor, name: Callable[[int], str]) -> None:
        """rows (records of the block, 2, D) float32, on any device; `name` of a record, for what cannot be kept."""
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
        """The rows (records, 2, D) float32 of a block that was written."""
        records, size = self.records(block), self.facts.record_bytes
        with (self.place / EMBEDDINGS).open("rb") as file:
            data = bytearray(os.pread(file.fileno(), len(records) * size, records.start * size))
        kept = torch.frombuffer(data, dtype=DTYPES[self.facts.dtype])
        return kept.view(len(records), 2, self.facts.dim).float()

    def write_means(self, shard: range, means: Tensor) -> None:
        """(len(shard), D) float32 of these classes."""
        _put(self.place / CLASS_MEANS, 4 * shard.start * self.facts.dim, means.cpu().numpy().astype("<f4").tobytes())

    def finish(self) -> None:
        """Give the cache its name. On one process, once all have written."""
        sums = [total for total in self._sums() if total is not None]
        assert len(sums) == self.blocks, "blocks are missing"
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
        entries = np.frombuffer((self.place / _BLOCKS).read_bytes(), "<u4").reshape(-1, 2)
        assert len(entries) == self.blocks, "blocks.bin has another length"
        return [total if total ^ 0xFFFFFFFF == other else None for total, other in entries.tolist()]


def partial(folder: Path) -> Path:
    """Where a cache lies while it is made."""
    return folder.with_name(f".{folder.name}.partial")


def _put(path: Path, at: int, data: bytes) -> None:
    """Bytes into a file that has its size already; on the disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
