"""Snapshots, which are what a run saves: checked before anything is written; each rank's part of one as files.

Shapes: centre tensors (len(shard), ...); everything else as it comes. Errors: `CheckpointError`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from partialkd.errors import CheckpointError, PartialKDError
from partialkd.storage.finite import not_finite
from partialkd.storage.sharded_file import write_rows
from partialkd.storage.tensor_file import Files, write_summed, write_tensors
from partialkd.world.shard import shard_of
from partialkd.world.world import World

STUDENT, PROGRESS, LOCAL, CENTRES = "student.safetensors", "progress.json", "local", "centres"

T = TypeVar("T")


@dataclass
class Snapshot:
    """All that a run needs to go on, as one rank has it."""

    step: int  # optimiser steps done
    student: dict[str, Tensor]  # full and flat; needed on rank 0 when saving, present on every rank after loading
    local: dict[str, Tensor]  # this rank's "buffer.*" and "rng.*" (uint8)
    centres: dict[str, Tensor]  # this rank's rows, (len(shard), ...), of each centre tensor; any dtype
    shard: range  # class ids of these rows; may be empty
    num_classes: int
    progress: dict[str, Any]  # JSON


def local_file(rank: int) -> str:
    """Name of the file of a rank's local state."""
    return f"{LOCAL}/{rank:05d}.safetensors"


def check(snapshot: Snapshot, score: float | None, world: World) -> None:
    """Raise CheckpointError on every rank if what the ranks have does not make one checkpoint; collective.

    Centres that are not finite are not looked for here: training has just done so, and names their classes.
    """
    kinds = world.gather_objects({name: (x.dtype, tuple(x.shape[1:])) for name, x in snapshot.centres.items()})

    def checking() -> None:
        expected = shard_of(snapshot.num_classes, world.rank, world.size)
        if snapshot.shard != expected:
            raise CheckpointError(f"shard must be {expected} of {snapshot.num_classes} classes, got {snapshot.shard}")
        for name, rows in snapshot.centres.items():
            if len(rows) != len(expected):
                raise CheckpointError(f"centres {name!r} must have {len(expected)} rows, got {len(rows)}")
        own = kinds[world.rank]
        if own != kinds[0]:
            raise CheckpointError(f"centre tensors must be alike on all ranks, rank 0 has {kinds[0]}, got {own}")
        if score is not None and not math.isfinite(score):
            raise CheckpointError(f"the score must be a finite number, got {score}")
        if problem := not_finite({**snapshot.student, **snapshot.local}):
            raise CheckpointError(problem)
        json.dumps(snapshot.progress, allow_nan=False)

    everywhere(world, f"saving step {snapshot.step}", checking)


def write_own(folder: Path, snapshot: Snapshot, rank: int) -> Files:
    """Write what is this rank's to write -> its files; not collective."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not there: the folder must be shared by all ranks")
    files = {local_file(rank): write_tensors(folder / local_file(rank), snapshot.local)}
    if rank == 0:
        files[STUDENT] = write_tensors(folder / STUDENT, snapshot.student)
        text = json.dumps(snapshot.progress, indent=2, allow_nan=False)
        files[PROGRESS] = write_summed(folder / PROGRESS, [text.encode()])
    rows = write_rows(folder / CENTRES, snapshot.centres, snapshot.shard)
    return files | {f"{CENTRES}/{name}": total for name, total in rows.items()}


class Staging:
    """Host copies of a snapshot's tensors, in memory reused from save to save, page-locked where they leave a GPU."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def copy(self, snapshot: Snapshot) -> Snapshot:
        """A snapshot that stays as it is while training goes on, until the next call."""
        groups = {"student": snapshot.student, "local": snapshot.local, "centres": snapshot.centres}
        copies = {
            group: {key: self._copy(f"{group}/{key}", x) for key, x in of.items()} for group, of in groups.items()
        }
        if any(x.is_cuda for of in groups.values() for x in of.values()):
            torch.cuda.current_stream().synchronize()
        return Snapshot(
            snapshot.step, **copies, shard=snapshot.shard, num_classes=snapshot.num_classes,
            progress=json.loads(json.dumps(snapshot.progress)),
        )  # fmt: skip

    def _copy(self, key: str, x: Tensor) -> Tensor:
        memory = self._memory.get(key)
        if memory is None or memory.shape != x.shape or memory.dtype != x.dtype:
            memory = self._memory[key] = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        return memory.copy_(x.detach(), non_blocking=True)


def everywhere(world: World, doing: str, action: Callable[[], T]) -> T:
    """Run `action` on every rank, collectively; CheckpointError on all of them if it fails on any."""

    def acting() -> T:
        try:
            return action()
        except PartialKDError as error:
            raise CheckpointError(f"{doing}: {error}") from error
        except Exception as error:
            raise CheckpointError(f"{doing}: {type(error).__name__}: {error}") from error

    return world.together(acting)
