"""Rows of sharded tensors on disk, in global class coordinates.

Shapes: a tensor of C classes is (len(shard), ...) on each rank; any dtype; the shard may be empty.
Each rank writes the rows of its shard as files of at most `PIECE_BYTES`, named by the range of class ids that they
hold, `000000000-000028581.safetensors`, every tensor's rows of that range in one file. A loading rank reads the files
that overlap its shard and nothing else, each once, and never holds more than its shard and twice one file. What is
loaded is on the CPU.

Differs from torch.distributed.checkpoint, which pickles its metadata, saves with collectives (a background thread
must not call them) and checks nothing it reads.
Errors: `CheckpointError` naming the file, or the shard whose classes are not all there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from partialkd.errors import CheckpointError
from partialkd.storage.tensor_file import Files, read_tensors, write_tensors

PIECE_BYTES = 64 << 20  # of one file: what a loading rank reads beside its own rows


def write_rows(folder: Path, tensors: dict[str, Tensor], shard: range) -> Files:
    """Write this rank's rows of every tensor into a folder that exists -> the files, as `read_rows` takes them.

    Not collective.
    """
    files: Files = {}
    for part in _parts(shard, tensors):
        rows = {name: x[part.start - shard.start : part.stop - shard.start] for name, x in tensors.items()}
        name = f"{part.start:09d}-{part.stop:09d}.safetensors"
        files[name] = write_tensors(folder / name, rows)
    return files


def _parts(shard: range, tensors: dict[str, Tensor]) -> Iterator[range]:
    """The shard in consecutive ranges of at most PIECE_BYTES; none for an empty shard."""
    row_bytes = sum(x.element_size() * x[:1].numel() for x in tensors.values())
    count = max(1, PIECE_BYTES // max(1, row_bytes))
    if tensors:
        yield from (range(i, min(i + count, shard.stop)) for i in range(shard.start, shard.stop, count))


def read_rows(folder: Path, files: Files, shard: range) -> dict[str, Tensor]:
    """Read this shard's rows of every tensor from the files of all ranks, whatever the shards were then.

    Not collective.
    """
    rows: dict[str, Tensor] = {}
    found = 0
    for name, expected in sorted(files.items()):
        part = _range_of(name)
        both = range(max(part.start, shard.start), min(part.stop, shard.stop))
        if not both and (shard or rows):  # an empty shard looks into one file, to know the tensors
            continue
        piece = read_tensors(folder / name, expected)
        if not rows:
            rows = {key: torch.empty((len(shard), *x.shape[1:]), dtype=x.dtype) for key, x in piece.items()}
        for key, target in rows.items() if both else ():
            source = piece[key][both.start - part.start : both.stop - part.start]
            target[both.start - shard.start : both.stop - shard.start] = source
        found += len(both)
    if files and found != len(shard):
        raise CheckpointError(f"{folder}: {found} of the {len(shard)} classes of {shard} are in its files")
    return rows


def pick_rows(folder: Path, files: Files, rows: Tensor) -> dict[str, Tensor]:
    """Read these rows (n,) int64 of every tensor, in their order, from the files that hold any of them.

    Not collective; none of them gives empty tensors. What is held beside them is one file.
    """
    picked: dict[str, Tensor] = {}
    found = 0
    for name, expected in sorted(files.items()):
        part = _range_of(name)
        here = ((rows >= part.start) & (rows < part.stop)).nonzero().squeeze(1)
        if not len(here) and picked:
            continue
        piece = read_tensors(folder / name, expected)
        if not picked:
            picked = {key: torch.empty((len(rows), *x.shape[1:]), dtype=x.dtype) for key, x in piece.items()}
        for key, target in picked.items():
            target[here] = piece[key][rows[here] - part.start]
        found += len(here)
    if found != len(rows):
        raise CheckpointError(f"{folder}: {found} of {len(rows)} rows that are wanted are in its files")
    return picked


def _range_of(name: str) -> range:
    start, _, stop = name.removesuffix(".safetensors").partition("-")
    return range(int(start), int(stop))
