"""Out of memory on one rank: an error that names the rank and says what can be changed, by key and in bytes.

Raised on the rank that it happens to; that rank ends (launching.py) and pulls the others down, within seconds on gloo,
on NCCL when torchrun ends them. Allocations of torch (CUDA and CPU), numpy and Python are recognised, and what C++
libraries say of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from partialkd.centres.shard import shard_of
from partialkd.config import PhaseConfig
from partialkd.dist import World
from partialkd.errors import OutOfMemory
from partialkd.methods import METHODS

_SAID = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed", "bad_alloc")
_STORE = {"fp32": 4, "bf16": 2}  # bytes of one number


class Adviser(Protocol):
    """What can be changed about a phase that does not fit. `key`: the phase's name in the configuration."""

    def __call__(self, key: str, phase: PhaseConfig, num_classes: int, world_size: int) -> str: ...


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, whoever asked for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID)


def memory_advice(key: str, phase: PhaseConfig, num_classes: int, world_size: int) -> str:
    """The keys that lower what a rank needs and are not set yet, with what the centres take."""
    rows = len(shard_of(num_classes, 0, world_size))
    centres, moments = centre_bytes(phase, rows)
    each = phase.global_batch // phase.accumulation // world_size
    advice = [f"more ranks (now {world_size})"]
    if phase.centres.store == "fp32":
        advice.append(f'{key}.centres.store = "bf16" (saves {_size(rows * phase.model.embedding_dim * 2)} a rank)')
    if moments and phase.optimizer.name == "adamw":
        advice.append(
            f'{key}.optimizer.name = "sgd" (one moment a centre, not two: saves {_size(moments // 2)} a rank)'
        )
    if each > 1:
        advice.append(f"a larger {key}.accumulation (now {phase.accumulation}: {each} images at once on each rank)")
    if not phase.model.activation_checkpointing:
        advice.append(f"{key}.model.activation_checkpointing = true")
    if phase.zero_stage < 3:
        advice.append(f"a higher {key}.zero_stage (now {phase.zero_stage})")
    held = f"{rows} of {num_classes} centres take {_size(centres)} on this rank, their moments {_size(moments)}"
    return f"{held}; any of these lowers what a rank needs: {', '.join(advice)}"


def centre_bytes(phase: PhaseConfig, rows: int) -> tuple[int, int]:
    """Of this many centres: units with lengths and which were seen; moments."""
    dim, optimizer = phase.model.embedding_dim, phase.optimizer
    centres = rows * (dim * _STORE[phase.centres.store] + 5)
    if METHODS[phase.method.name].kind != "trainable":
        return centres, 0
    per_row = 8 * dim + 4 if optimizer.name == "adamw" else 4 * dim * bool(optimizer.momentum)
    return centres, rows * per_row


@contextmanager
def advising(
    key: str, phase: PhaseConfig, num_classes: int, world: World, advise: Adviser = memory_advice
) -> Iterator[None]:
    """Turns an allocation that fails in this phase into OutOfMemory with advice; on this rank alone."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = f"{key}: rank {world.rank} of {world.size} is out of memory: {said}"
        raise OutOfMemory(f"{where}; {advise(key, phase, num_classes, world.size)}") from error


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
