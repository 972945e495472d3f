"""The state of a phase in training as a checkpoint's Snapshot: captured between two steps, and restored.

The number of ranks, the micro-steps a step, the ZeRO stage and the precision in which centres are kept may all differ
between the two. What must be equal stands in `identity`, and follows from the
marks of the configuration's fields (config/resume.py). Which folder, phase and checkpoint a run goes on from is decided
in run/folder.py; nothing else decides what resumes. The position in the epoch counts samples of all ranks, so that
a run goes on with the record after the last one it learnt from, however the global batch is cut.

With all of these as they were, a run goes on bit for bit. At another number of ranks, with the same global batch:
- the student's parameters and moments, the rate's schedule, the centres with their moments and which have been seen are
  the same numbers, and so are the rows drawn in a sampled step: losses differ by the rounding of sums (float32, frozen
  BatchNorm: about 1e-6 of the loss);
- live BatchNorm goes on from running statistics averaged over the ranks that saved, and normalises by the statistics of
  batches of another size, as it would from the start at that number of ranks; SyncBatchNorm's batches stay the same;
- random numbers (dropout) come from new streams, one for each (seed, rank, step): no two ranks share one, and none is
  drawn from twice.
With another accumulation, moving-average centres move at other moments and the positives of a sampled step are those of
other micro-batches: these losses are close, not equal. Centres and moments change their precision by rounding to
nearest.

Errors: CheckpointError naming the path, the entry and both values; nothing has been changed then.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from partialkd.centres import Centres, CentresState
from partialkd.checkpoint.snapshot import Snapshot
from partialkd.config import Config, PhaseConfig
from partialkd.config.resume import identity_changes, phase_identity
from partialkd.errors import CheckpointError
from partialkd.methods.stateful import States, without_states
from partialkd.storage.finite import not_finite
from partialkd.training.student import Student
from partialkd.world.world import World


class Counting(Protocol):
    """A part whose state is a few numbers, equal on all ranks, under names that no other part uses."""

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any], /) -> None: ...


@dataclass(frozen=True)
class Parts:
    """Parts of a phase that have a state, each of which gives and takes its own."""

    student: Student
    centres: Centres
    centres_move: bool  # where they do not, they are made again from the teacher
    counting: tuple[Counting, ...] = ()
    states: States = field(default_factory=lambda: States({}))  # tensors of the method and its terms


def identity(
    name: str, phase: PhaseConfig, config: Config, data: str, teacher: str | None, start: dict[str, Any] | None = None
) -> dict[str, Any]:
    """List what must be equal in the same run.

    data, teacher, start: fingerprints of its records, of its teacher and of what it started from.
    """
    return {
        "phase": name,
        "seed": config.run.seed,
        "data": data,
        "teacher": teacher,
        **phase_identity(phase),
        **(start or {}),
    }


def capture(parts: Parts, facts: dict[str, Any]) -> Snapshot:
    """Take the state of a phase between two optimiser steps, collectively; facts: its identity."""
    student, store, centres = parts.student, parts.centres.store, parts.centres.state()
    student.world.agree(not_finite(parts.states.rows()), CheckpointError)
    return Snapshot(
        step=student.steps,
        student=student.state() | parts.states.state(),
        local={**student.local_state(), **_random_state(student.world)},
        centres=(centres.rows if parts.centres_move else {}) | parts.states.rows(),
        shard=store.shard,
        num_classes=store.num_classes,
        progress={**facts, **{key: value for part in parts.counting for key, value in part.state().items()}},
    )


def restore(snapshot: Snapshot, parts: Parts, facts: dict[str, Any], path: Path) -> None:
    """Put a snapshot, loaded from `path`, into a phase of the same identity; collective."""
    world, saved = parts.student.world, snapshot.progress
    changes = identity_changes(saved, facts).items()
    problem = "; ".join(f"{path}: made with {key} = {was!r}, this run has {now!r}" for key, (was, now) in changes)
    tensors = snapshot.student | snapshot.centres
    if not problem and (unfit := parts.states.problem(tensors)):
        problem = f"{path}: {unfit}"
    world.agree(problem or None, CheckpointError)
    for part in parts.counting:
        part.load_state(saved)
    parts.student.load_state(snapshot.student, snapshot.local)
    parts.centres.load_state(CentresState(snapshot.step, without_states(snapshot.centres)))
    parts.states.load_state(tensors)
    _set_random_state(snapshot, facts["seed"], world)


def stream_seed(seed: int, rank: int, step: int) -> int:
    """Make the seed of a rank's random numbers from `step` on: another one for each (seed, rank, step)."""
    digest = hashlib.blake2b(f"{seed} {rank} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _random_state(world: World) -> dict[str, Tensor]:
    state = {"rng.cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["rng.cuda"] = torch.cuda.get_rng_state(world.device)
    return state


def _set_random_state(snapshot: Snapshot, seed: int, world: World) -> None:
    """Go on with this rank's own stream; with a new one where the snapshot holds none for it."""
    torch.manual_seed(stream_seed(seed, world.rank, snapshot.step))  # of all devices
    if "rng.cpu" in snapshot.local:
        torch.set_rng_state(snapshot.local["rng.cpu"])
    if "rng.cuda" in snapshot.local and world.device.type == "cuda":
        torch.cuda.set_rng_state(snapshot.local["rng.cuda"], world.device)
