"""Plans say which record is read when, by which rank, mirrored or grey: pure arithmetic on (seed, epoch, step).

A plan has no state: any micro-step of any epoch can be asked for, so a run resumes exactly from its position alone,
at another world size or accumulation too (which change the micro-steps of an optimiser step, not the optimiser steps
of an epoch).
Indices are (b,) int64 into a Source, flips and greys (b,) bool. The orders themselves: orders.py.
Everything about one record (its place in the global order, flip, grey) is independent of rank and world size; ranks
and micro-steps only cut the same global batch into parts.
Errors: `ConfigError` naming the numbers that do not divide; `ValueError` for a micro-step outside the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from partialkd.counter_random import uniform
from partialkd.data.order.orders import GlobalOrder, Order
from partialkd.errors import ConfigError

_TOGETHER = 4096  # records worked out in one go
_FLIP, _GREY = 1, 2  # salts: the two choices of one record are independent


class Plan(Protocol):
    """Says which records a rank reads in each micro-step: all that loaders need to know."""

    micro_steps: int  # per epoch, the same on every rank
    micro_batch: int  # records that are read together in one micro-step, by all ranks; the last ones may be fewer
    local_batch: int  # the largest batch of this rank
    rank: int

    @property
    def seed(self) -> int | None:
        """Return the seed of the choices about records (`uniform`); None where records come as they are."""
        ...

    def indices(self, epoch: int, micro_step: int) -> np.ndarray: ...

    def flips(self, epoch: int, indices: np.ndarray) -> np.ndarray: ...

    def greys(self, epoch: int, indices: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class BatchCut:
    """Says how each global batch is cut into micro-steps, and those into one part per rank; and whose part is meant."""

    global_batch: int  # records per optimiser step
    accumulation: int = 1  # micro-steps per optimiser step
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        parts = self.accumulation * self.world_size
        if self.global_batch % parts:
            rule = f"accumulation x world size ({self.accumulation} x {self.world_size} = {parts})"
            raise ConfigError(f"global_batch must be divisible by {rule}, got {self.global_batch}")

    @property
    def micro_batch(self) -> int:
        """Count the records per micro-step of all ranks together."""
        return self.global_batch // self.accumulation

    @property
    def local_batch(self) -> int:
        """Count the records per micro-step of one rank."""
        return self.micro_batch // self.world_size


class TrainingPlan:
    """Cuts global batches from an order, leaving the last incomplete one out.

    Without `order`, each epoch has a new random order of `num_records`, each record at most once in it.
    """

    def __init__(
        self, num_records: int, cut: BatchCut, seed: int, flip: bool, grey: float = 0.0, order: Order | None = None
    ) -> None:
        order = order or GlobalOrder([num_records], [1.0], seed)
        if order.length < cut.global_batch:
            rule = f"must be at most the number of records per epoch ({order.length})"
            raise ConfigError(f"global_batch {rule}, got {cut.global_batch}")
        self.order, self.cut, self.seed, self.flip, self.grey = order, cut, seed, flip, grey
        self.steps, self.dropped = divmod(order.length, cut.global_batch)  # optimiser steps, records left out
        self.micro_steps = self.steps * cut.accumulation
        self.micro_batch, self.local_batch, self.rank = cut.micro_batch, cut.local_batch, cut.rank
        self._run = max(1, _TOGETHER // self.local_batch)  # micro-steps whose records are worked out together
        self._kept: tuple[int, int, np.ndarray] = (-1, -1, np.empty((0, 0), np.int64))

    def indices(self, epoch: int, micro_step: int) -> np.ndarray:
        """Return the records (b,) int64 that this rank reads in a micro-step."""
        _check_step(micro_step, self.micro_steps)
        run, row = divmod(micro_step, self._run)
        kept = self._kept  # read once: threads may ask at the same time
        if kept[:2] != (epoch, run):
            kept = self._kept = epoch, run, self._records(epoch, run)
        return kept[2][row].copy()

    def _records(self, epoch: int, run: int) -> np.ndarray:
        """Work out `_run` micro-steps (n, b) int64 at once: small calls would cost more than the arithmetic in them."""
        steps = np.arange(run * self._run, min((run + 1) * self._run, self.micro_steps))[:, None]
        positions = steps * self.micro_batch + self.rank * self.local_batch + np.arange(self.local_batch)
        return self.order.records(epoch, positions.ravel()).reshape(positions.shape)

    def flips(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """Return (b,) bool, True where the image is mirrored: one half of all on average."""
        return uniform(self.seed, _FLIP, epoch, indices) < (0.5 if self.flip else 0.0)

    def greys(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """Return (b,) bool, True where the image loses its colours: a share `grey` of all on average."""
        return uniform(self.seed, _GREY, epoch, indices) < self.grey if self.grey else np.zeros(len(indices), bool)


class SequentialPlan:
    """Reads every record once, in order, as it is. Last batches are shorter or empty, never padded.

    Micro-step m covers records [m * B, (m + 1) * B), B = local_batch * world_size, rank r the r-th part of them.
    """

    seed = None

    def __init__(self, num_records: int, local_batch: int, rank: int, world_size: int) -> None:
        if local_batch < 1:
            raise ConfigError(f"batch must be at least 1, got {local_batch}")
        self.num_records, self.local_batch, self.rank = num_records, local_batch, rank
        self.micro_batch = local_batch * world_size
        self.micro_steps = -(-num_records // self.micro_batch)

    def indices(self, epoch: int, micro_step: int) -> np.ndarray:  # noqa: ARG002 (the same every epoch)
        """Return the records (b,) int64, b <= local_batch, that this rank reads in a micro-step."""
        _check_step(micro_step, self.micro_steps)
        start = micro_step * self.micro_batch + self.rank * self.local_batch
        return np.arange(min(start, self.num_records), min(start + self.local_batch, self.num_records), dtype=np.int64)

    def flips(self, epoch: int, indices: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Return (b,) bool, all False."""
        return np.zeros(len(indices), dtype=bool)

    greys = flips


class ListedPlan(SequentialPlan):
    """Reads some records once, in the order in which they are listed (n,) int64; cut as a SequentialPlan."""

    def __init__(self, records: np.ndarray, local_batch: int, rank: int, world_size: int) -> None:
        super().__init__(len(records), local_batch, rank, world_size)
        self.records = records

    def indices(self, epoch: int, micro_step: int) -> np.ndarray:
        return self.records[super().indices(epoch, micro_step)]


def _check_step(micro_step: int, micro_steps: int) -> None:
    if not 0 <= micro_step < micro_steps:
        raise ValueError(f"micro_step must be in [0, {micro_steps}), got {micro_step}")
