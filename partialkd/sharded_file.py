"""Rows of sharded tensors on disk, in global class coordinates, through torch.distributed.checkpoint.

Shapes: a tensor of C classes is (len(shard), ...) on each rank; any dtype; the shard may be empty.
Each rank saves plain tensors under keys that no two ranks share, `unit/000000000-000028581` (name/first-stop class
id), in pieces of at most `PIECE_BYTES`. DTensor's own Shard(0) is not used: it deals out rows like torch.chunk, we
give early ranks the remainder (centres/shard.py). A loading rank reads the pieces that overlap its shard and
nothing else, so it never holds more than its shard and two pieces. What is loaded is on the CPU.

Errors: reading, `CheckpointError` on this rank for a file that cannot be read, lacks classes of the shard or holds
something else than tensors. Writing, `RowsNotWritten` on every rank.
Nothing is unpickled freely: torch reads the tensors with weights_only, and the metadata is read here by an
unpickler that knows its few classes only.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from partialkd.errors import CheckpointError

PIECE_BYTES = 64 << 20  # of one saved piece: what a loading rank may read beside its own rows


class RowsNotWritten(CheckpointError):
    """`failures`: what went wrong on which rank."""

    def __init__(self, failures: dict[int, BaseException]) -> None:
        self.failures = {rank: f"{type(error).__name__}: {error}" for rank, error in failures.items()}
        super().__init__("; ".join(f"rank {rank}: {text}" for rank, text in self.failures.items()))


def write_rows(folder: Path, tensors: dict[str, Tensor], shard: range, world_size: int) -> None:
    """Collective. Write this rank's rows of every tensor into a folder that exists and is seen by all ranks."""
    pieces = {
        f"{name}/{part.start:09d}-{part.stop:09d}": rows[part.start - shard.start :][: len(part)]
        for name, rows in tensors.items()
        for part in _parts(shard, rows)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # on purpose, with one rank
        try:
            dcp.save(pieces, storage_writer=dcp.FileSystemWriter(folder), no_dist=world_size == 1)
        except dcp.CheckpointException as error:  # not an Exception, and raised on every rank
            raise RowsNotWritten({rank: failure[0] for rank, failure in error.failures.items()}) from error


def _parts(shard: range, rows: Tensor) -> Iterator[range]:
    """The shard in consecutive ranges of at most PIECE_BYTES; none for an empty shard."""
    row_bytes = rows.element_size() * rows[:1].numel()
    count = max(1, PIECE_BYTES // max(1, row_bytes))
    for start in range(shard.start, shard.stop, count):
        yield range(start, min(start + count, shard.stop))


def read_rows(folder: Path, shard: range) -> dict[str, Tensor]:
    """Not collective. This shard's rows of every saved tensor, whatever the shards were when it was written."""
    reader = _Reader(folder)
    rows: dict[str, Tensor] = {}
    found: dict[str, int] = {}
    requests: dict[str, Tensor] = {}
    cuts: list[tuple[Tensor, Tensor]] = []
    for key, saved in reader.read_metadata().state_dict_metadata.items():
        name, part = _parse(key)
        assert isinstance(saved, TensorStorageMetadata)
        if name not in rows:
            rows[name] = torch.empty((len(shard), *saved.size[1:]), dtype=saved.properties.dtype)
            found[name] = 0
        both = range(max(part.start, shard.start), min(part.stop, shard.stop))
        if not both:
            continue
        found[name] += len(both)
        target = rows[name][both.start - shard.start : both.stop - shard.start]
        if both == part:  # read in place
            requests[key] = target
        else:  # read apart, then cut
            requests[key] = torch.empty(saved.size, dtype=saved.properties.dtype)
            cuts.append((target, requests[key][both.start - part.start : both.stop - part.start]))
    for name, count in found.items():
        if count != len(shard):
            raise CheckpointError(f"centres {name!r}: {count} of the {len(shard)} classes of {shard} are in the file")
    if requests:
        _fill(requests, reader)
    for target, part_of_piece in cuts:
        target.copy_(part_of_piece)
    return rows


def _fill(requests: dict[str, Tensor], reader: _Reader) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # on purpose: ranks ask for different keys
        try:
            dcp.load(requests, storage_reader=reader, no_dist=True)
        except dcp.CheckpointException as error:  # this rank's alone
            reasons = [f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()]
            raise CheckpointError("; ".join(reasons)) from error


def _parse(key: str) -> tuple[str, range]:
    name, _, span = key.rpartition("/")
    start, _, stop = span.partition("-")
    return name, range(int(start), int(stop))


class _Reader(dcp.FileSystemReader):
    """Reads the metadata with the restricted unpickler below."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as stream:
            return _MetadataUnpickler(stream).load()


class _MetadataUnpickler(pickle.Unpickler):
    """Knows the classes that torch.distributed.checkpoint writes for tensors, and no other."""

    KNOWN = frozenset(
        [f"torch.distributed.checkpoint.metadata.{name}" for name in (
            "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex",
            "StorageMeta", "_MEM_FORMAT_ENCODING",
        )]
        + ["torch.distributed.checkpoint.filesystem._StorageInfo", "torch.serialization._get_layout", "torch.Size"]
        + ["pathlib.PosixPath", "pathlib.PurePosixPath"]
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in self.KNOWN or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise CheckpointError(f"centres/.metadata: must hold tensors only, names {module}.{name}")
