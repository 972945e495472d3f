"""Snapshots for the tests of checkpoints: every type and shape, no two ranks, rows or steps alike."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from partialkd import checkpoint
from partialkd.checkpoint.saver import Saver
from partialkd.checkpoint.snapshot import Snapshot
from partialkd.world.shard import shard_of
from partialkd.world.world import World

PROGRESS = {"epoch": 3, "phase": "student", "losses": [0.5, 1e-7]}


def full_centres(num_classes: int, step: int = 0) -> dict[str, Tensor]:
    """Every centre tensor of all classes."""
    draw = torch.Generator().manual_seed(step)
    return {
        "unit": torch.randn(num_classes, 6, generator=draw),
        "moment.sgd": torch.randn(num_classes, 6, generator=draw).bfloat16(),
        "codes": torch.randint(-128, 128, (num_classes, 2, 3), generator=draw, dtype=torch.int8),
        "seen": torch.rand(num_classes, generator=draw) > 0.5,
        "count": torch.arange(num_classes) + step,
    }


def student(step: int = 0) -> dict[str, Tensor]:
    """Views of one memory, as ZeRO's parameters are; a transposed one; a number; an empty one."""
    flat = torch.arange(12.0) + step
    return {
        "param.a": flat[:6].view(2, 3),
        "param.b": flat[4:].view(4, 2).T,
        "counter.steps": torch.tensor(step),
        "param.none": torch.zeros(0, 3),
    }


def local(rank: int) -> dict[str, Tensor]:
    return {
        "buffer.mean": torch.full((3,), float(rank)),
        "buffer.count": torch.tensor(10 + rank),
        "rng.cpu": torch.full((4,), rank, dtype=torch.uint8),
    }


def snapshot(world: World, num_classes: int, step: int = 0) -> Snapshot:
    """A rank's."""
    shard = shard_of(num_classes, world.rank, world.size)
    return Snapshot(
        step=step,
        student=student(step) if world.is_main else {},
        local=local(world.rank),
        centres={name: x[shard.start : shard.stop] for name, x in full_centres(num_classes, step).items()},
        shard=shard,
        num_classes=num_classes,
        progress=dict(PROGRESS),
    )


def load(world: World, path: Path, num_classes: int) -> Snapshot:
    return checkpoint.load(path, world, shard_of(num_classes, world.rank, world.size), num_classes)


def save(root: Path, num_classes: int, *steps: int) -> list[Path]:
    """By one rank."""
    return [Saver(root, World(), keep=99).save(snapshot(World(), num_classes, step)) for step in steps]


def expect(got: Snapshot, num_classes: int, rank: int, world_size: int, saved_by: int, step: int) -> None:
    """What `rank` of `world_size` must find in a checkpoint of that step."""
    shard = shard_of(num_classes, rank, world_size)
    assert (got.shard, got.step, got.num_classes, got.progress) == (shard, step, num_classes, PROGRESS)
    _equal(got.student, student(step))
    _equal(got.centres, {name: x[shard.start : shard.stop] for name, x in full_centres(num_classes, step).items()})
    if world_size == saved_by:
        _equal(got.local, local(rank))
    else:  # what the mean over the saved ranks makes of it for all
        mean = torch.full((3,), (saved_by - 1) / 2)
        _equal(got.local, {"buffer.mean": mean, "buffer.count": torch.tensor(10)})


def _equal(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(given) == set(expected)
    for name, x in expected.items():
        torch.testing.assert_close(given[name], x, rtol=0, atol=0)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The operating system refuses longer files to this process: a full disk that needs no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
