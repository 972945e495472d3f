"""Which record is read when, by which rank, mirrored or grey: pure arithmetic on (seed, epoch, step).

A plan has no state: any micro-step of any epoch can be asked for, so a run resumes exactly from its position alone,
at another world size or accumulation too (micro-steps an optimiser step change, optimiser steps an epoch do not).
Indices are (b,) int64 into a Source, flips and greys (b,) bool. The orders themselves: samplers.py.
Everything about one record (its place in the global order, flip, grey) is independent of rank and world size; ranks
and micro-steps only cut the same global batch into parts.
Errors: `ConfigError` naming the numbers that do not divide; `ValueError` for a micro-step outside the epoch.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from partialkd.counter_random import uniform
from partialkd.data.order.orders import GlobalOrder, Order
from partialkd.errors import ConfigError

_TOGETHER = 4096  # records worked out in one go
_FLIP, _GREY = 1, 2  # salts: the two choices of one record are independent


class Plan(Protocol):
    """What loaders need to know of an order."""

    micro_steps: int  # an epoch, the same on every rank
    local_batch: int  # the largest batch of this rank
    rank: int

    @property
    def seed(self) -> int | None:
        """Of the choices about records (`uniform`); None: records come as they are."""
        ...

    def indices(self, epoch: int, micro_step: int) -> np.ndarray: ...

    def flips(self, epoch: int, indices: np.ndarray) -> np.ndarray: ...

    def greys(self, epoch: int, indices: np.ndarray) -> np.ndarray: ...


class TrainingPlan:
    """Global batches cut from an order, the last incomplete one left out.

    Without `order`: a new random order of `num_records` an epoch, each record at most once in it.
    """

    def __init__(
        self,
        num_records: int,
        global_batch: int,
        accumulation: int,
        rank: int,
        world_size: int,
        seed: int,
        flip: bool,
        grey: float = 0.0,
        order: Order | None = None,
    ) -> None:
        order = order or GlobalOrder([num_records], [1.0], seed)
        parts = accumulation * world_size
        if global_batch % parts:
            rule = f"accumulation x world size ({accumulation} x {world_size} = {parts})"
            raise ConfigError(f"global_batch must be divisible by {rule}, got {global_batch}")
        if order.length < global_batch:
            rule = f"must be at most the number of records an epoch ({order.length})"
            raise ConfigError(f"global_batch {rule}, got {global_batch}")
        self.order, self.global_batch, self.accumulation = order, global_batch, accumulation
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.flip, self.grey = flip, grey
        self.steps = order.length // global_batch  # optimiser steps an epoch
        self.micro_steps = self.steps * accumulation
        self.local_batch = global_batch // parts
        self._run = max(1, _TOGETHER // self.local_batch)  # micro-steps whose records are worked out together
        self._kept: tuple[int, int, np.ndarray] = (-1, -1, np.empty((0, 0), np.int64))
        self.dropped = order.length % global_batch  # records an epoch leaves out, other ones each epoch

    def indices(self, epoch: int, micro_step: int) -> np.ndarray:
        """The records of this rank in a micro-step (b,) int64: its slice of the micro-step's slice of the order."""
        _check_step(micro_step, self.micro_steps)
        run, row = divmod(micro_step, self._run)
        kept = self._kept  # read once: threads may ask at the same time
        if kept[:2] != (epoch, run):
            kept = self._kept = epoch, run, self._records(epoch, run)
        return kept[2][row].copy()

    def _records(self, epoch: int, run: int) -> np.ndarray:
        """Those of `_run` micro-steps (n, b) int64: small calls would cost more than the arithmetic in them."""
        steps = np.arange(run * self._run, min((run + 1) * self._run, self.micro_steps))[:, None]
        positions = (steps * self.world_size + self.rank) * self.local_batch + np.arange(self.local_batch)
        return self.order.records(epoch, positions.ravel()).reshape(positions.shape)

    def flips(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """(b,) bool: True where the image is mirrored, one half of all on average."""
        return uniform(self.seed, _FLIP, epoch, indices) < (0.5 if self.flip else 0.0)

    def greys(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """(b,) bool: True where the image loses its colours, a share `grey` of all on average."""
        return uniform(self.seed, _GREY, epoch, indices) < self.grey if self.grey else np.zeros(len(indices), bool)


class SequentialPlan:
    """Every record once, in order, as it is. Last batches are shorter or empty, never padded.

    Micro-step m covers records [m * B, (m + 1) * B), B = local_batch * world_size, rank r the r-th part of them.
    """

    seed = None

    def __init__(self, num_records: int, local_batch: int, rank: int, world_size: int) -> None:
        if local_batch < 1:
            raise ConfigError(f"batch must be at least 1, got {local_batch}")
        self.num_records, self.local_batch, self.rank, self.world_size = num_records, local_batch, rank, world_size
        self.micro_steps = -(-num_records // (local_batch * world_size))

    def indices(self, epoch: int, micro_step: int) -> np.ndarray:  # noqa: ARG002 (the same every epoch)
        """The records of this rank in a micro-step: (b,) int64, b <= local_batch."""
        _check_step(micro_step, self.micro_steps)
        start = (micro_step * self.world_size + self.rank) * self.local_batch
        return np.arange(min(start, self.num_records), min(start + self.local_batch, self.num_records), dtype=np.int64)

    def flips(self, epoch: int, indices: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """(b,) bool, all False."""
        return np.zeros(len(indices), dtype=bool)

    greys = flips


def _check_step(micro_step: int, micro_steps: int) -> None:
    if not 0 <= micro_step < micro_steps:
        raise ValueError(f"micro_step must be in [0, {micro_steps}), got {micro_step}")
