"""Compare embeddings with class centres sharded over ranks, and move the centres: what a method asks for in a step.

`contrast` takes this rank's embeddings (b, D) and labels (b,) and returns, for each of its samples, the target
cosine and the negative log-sum-exp over all other classes (docs/flows.md). Both carry their exact
gradient to this rank's embeddings; a mean over the rank's samples and plain averaging over ranks give the
gradient of the global mean. Collectives: one all_gather and one reduce_scatter; none in the backward pass. `begin`
starts the first one early, so that it goes on while the teacher embeds the batch. A margin that bends the negatives
needs the target cosines before the sweep: they travel first, by one more sum over ranks of a number per sample.

Where rows are sampled, `importance_correction` adds log(classes other than the own / of them compared with) to the
negative log-sum-exp: its sum is then unbiased if the classes of the batch are drawn like any others. It changes no
gradient's direction to the other classes; it restores their weight against the target.

`step` moves trainable centres: one all_gather of two numbers per sample, then the second sweep. `skip` takes its place
where the student does not step either: centres that are `undoable` go back to where they were, bit for bit.

A sample whose embedding or gradient is not finite has a loss that is not finite, but no part in any centre's movement.

Raises: ValueError naming rank, sample and label if a label is outside [0, num_classes). On CUDA nobody waits for the
labels: the error comes with the first call that finds the device's answer there, and that sample's N is NaN.
Source: Partial FC, arXiv:2203.15565. Differs: no logits, no maximum, own target row sent along (b, D) so that
the target cosine is computed in float32 where its gradient is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from partialkd.centres.contrast import Bending, Contrast, Look, with_slope
from partialkd.centres.gathered import OwnRows, where_finite
from partialkd.centres.host_memory import RowsInWindows
from partialkd.centres.labels import LabelCheck
from partialkd.centres.rounding import Draw
from partialkd.centres.row_memory import RowMemory, RowsInStore
from partialkd.centres.row_optimizers import RowOptimizer
from partialkd.centres.sampling import Sampling
from partialkd.centres.soft_targets import SoftContrast, SoftPass, SoftPending, SoftTargets
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps.base import MicroStep, Queries
from partialkd.centres.sweeps.bend import Bend, offset_with
from partialkd.centres.sweeps.choose import make_sweep
from partialkd.centres.sweeps.fastest_products import make_products
from partialkd.config import CentresConfig
from partialkd.errors import ConfigError
from partialkd.world.shard import local_rows
from partialkd.world.world import World


@dataclass(frozen=True)
class CentresState:
    """The state that the centres of one rank go on from."""

    steps: int  # optimiser steps taken
    rows: dict[str, Tensor]  # `CentreStore.state()`; empty: the rows are as they were made


@dataclass(frozen=True)
class _Begun:
    """A micro-step whose embeddings are on their way."""

    student: Tensor
    x: Tensor  # (b, D) of unit length, with gradient to `student`
    received: Callable[[], OwnRows]


@dataclass(frozen=True)
class _Pending:
    """A micro-step whose trainable centres have not moved yet."""

    queries: Queries
    partition: Tensor  # (b,) Z of this rank's samples
    contrast: Contrast
    soft: SoftPending | None = None


class Centres:
    """This rank's shard of the centres, and the collectives that make the shards one."""

    def __init__(
        self,
        store: CentreStore,
        world: World,
        scale: float,
        config: CentresConfig,
        seed: int = 0,
        optimizer: RowOptimizer | None = None,
        accumulation: int = 1,
        undoable: bool = False,
        soft: SoftTargets | None = None,
    ) -> None:
        """Take over a filled store; collective where `config.memory` is host.

        accumulation: micro-steps per step, to have room for. undoable: keep what `look` is about to move until the
        optimiser step, so that `skip` can put it back. soft: what `teach` and `softened` are of.
        """
        self.world, self.scale, self.seed = world, scale, seed
        self.optimizer = optimizer
        self.sampling = Sampling(store.num_classes, config.sample_rate, seed) if config.sample_rate < 1 else None
        self.corrected = config.importance_correction and self.sampling is not None
        self._rows = _row_memory(store, world, config, self.sampling, accumulation)
        device, dtype = self._rows.device, store.length.dtype
        self.sweep = make_sweep(config, scale, device, dtype)
        products = make_products(config.products, device, dtype)
        self.soft_targets = soft
        self._soft = SoftPass(soft, world, scale, products, config.chunk_rows) if soft else None
        self.softened: SoftContrast | None = None  # of the last `contrast`, where there are soft targets
        self._labels = LabelCheck(store.num_classes, world.rank)
        self._steps, self._undoable = 0, undoable
        self._begun: _Begun | None = None
        self._pending: list[_Pending] = []
        self._micro_steps = 0  # since the last optimiser step

    @property
    def steps(self) -> int:
        """Optimiser steps taken, also where nothing is trainable: they seed the sampling and the rounding."""
        return self._steps

    @property
    def store(self) -> CentreStore:
        """All rows of this shard, as the last step left them. Write to it before the first step, or by `load_state`."""
        self.settle()
        return self._rows.store

    def settle(self) -> None:
        """Wait until the store has what the last step changed, and all labels are known to be right."""
        self._labels.settle(self._rows.device)
        self._rows.settle()

    @property
    def working(self) -> CentreStore:
        """Store of at least the rows that the last step has moved, on the device: `store` itself, or a window of it."""
        return self._rows.working

    def state(self) -> CentresState:
        """The state that `load_state` goes on from: the tensors themselves, not a copy."""
        return CentresState(self._steps, self.store.state())

    def load_state(self, state: CentresState) -> None:
        """Go on, between two steps, from what `state` of another had."""
        self._steps = state.steps
        if state.rows:
            self._rows.forget()
            self._rows.store.load_state(state.rows)

    def begin(self, student: Tensor, labels: Tensor) -> None:
        """Send what `contrast(student, labels)`, which must be called next, will wait for."""
        self._begun = self._begin(student, labels, None)

    def teach(self, teacher: Tensor | None, records: Tensor | None = None) -> None:
        """Send the teacher's embeddings (b, D of the teacher), before `contrast`, if there are soft targets.

        records: (b,) int64, which noise on the teacher's logits is drawn for.
        """
        if self._soft is not None:
            assert teacher is not None
            noise = self._soft.targets.noise
            keys = noise.keys(records, self._steps) if noise is not None and records is not None else None
            self._soft.send(teacher, self._rows.store.length.dtype, keys)

    def contrast(
        self,
        student: Tensor,
        labels: Tensor,
        teacher: Tensor | None = None,
        look: Look | None = None,
        bending: Bending | None = None,
    ) -> Contrast:
        """Compare this rank's samples with all classes, and let `look` move their own centres first.

        student (b, D) with gradient, labels (b,) int64, teacher (b, D); neither need be normalised. bending: of the
        negatives, by the target cosines of the centres as they are compared with.
        """
        begun, self._begun = self._begun or self._begin(student, labels, teacher), None
        assert begun.student is student, "Centres.contrast of other embeddings than were begun with"
        x = begun.x
        with torch.no_grad():
            own = self._rows.enter(begun.received(), self._steps)
            looked = self._look(look, own) if look else torch.zeros_like(own.student[:, 0])
            bend = self._bend(bending, own) if bending else None
            kept = self._rows.filter(own, self._steps)
            queries = Queries(where_finite(own.student), own.owned, own.row, kept, bend)
            soft = self._soft.begin(own, queries) if self._soft else None
            total, partition = soft.hard if soft else self.sweep.sums(own.store, queries)
            parts = [total, self._targets(own), partition, looked, *(soft.parts if soft else ())]
            if self.corrected:
                parts.append(queries.filter.counts().to(total).expand(len(total), 2))
            sums, target_centre, partition, looked, *more = self._scatter(*parts)
            correction = _correction(more.pop()) if self.corrected else torch.zeros_like(partition)
            slope = self.scale * sums / partition.clamp_min(torch.finfo(partition.dtype).tiny)[:, None]
            value = partition.log() + offset_with(self.scale, bend) + correction
            value = value.masked_fill_(self._labels.wrong(labels), torch.nan)  # CUDA has not told yet
        first = (self._micro_steps * self.world.size + self.world.rank) * len(x)
        self._micro_steps += 1
        found = Contrast((x * target_centre).sum(1), with_slope(value, x, slope), looked, target_centre, first)
        pending = soft.finish(x, found.target, more, correction) if soft else None
        self.softened = pending.found if pending else None
        if self.optimizer:
            found.target.retain_grad()
            found.negative.retain_grad()
            if pending:
                pending.retain_grad()
            self._pending.append(_Pending(queries, partition, found, pending))
        return found

    def step(self, lr: float) -> None:
        """Move trainable centres by all micro-steps since the last call; once per optimiser step, after backward."""
        self._labels.answer()
        if self.optimizer:
            with torch.no_grad():
                batches = [self._row_weights(pending) for pending in self._pending]
                with self._rows.working.rounding(Draw(self.seed, self._steps)):
                    self._move(self.optimizer, batches, lr)
        self._rows.leave(everything=self.optimizer is not None)
        self._forget()
        self._steps += 1

    def skip(self) -> None:
        """Leave a step out, instead of `step`: what `look` has moved since the last one goes back (`undoable`)."""
        self._rows.undo()
        self._forget()

    def _look(self, look: Look, own: OwnRows) -> Tensor:
        self._rows.moves(own, self._undoable)
        with own.store.rounding(Draw(self.seed, self._steps, self._micro_steps)):
            return look(own)

    def _bend(self, bending: Bending, own: OwnRows) -> Bend:
        if not self.sweep.bends or self._soft:
            by = "a pass with soft targets" if self._soft else type(self.sweep).__name__
            raise ConfigError(f"centres.backend: {by} knows of no margin that bends negatives")
        return bending(self.world.sum((own.student * self._targets(own)).sum(1)))

    def _move(self, optimizer: RowOptimizer, batches: list[MicroStep], lr: float) -> None:
        if self._soft is None:
            self.sweep.move(self._rows.working, batches, optimizer, lr)
            return
        parts = zip(self._pending, batches, strict=True)
        softened = [pending.soft.micro_step(batch, len(batches)) for pending, batch in parts if pending.soft]
        self._soft.sweep.move(self._rows.working, softened, optimizer, lr)

    def _forget(self) -> None:
        self._pending.clear()
        self._micro_steps = 0

    def _row_weights(self, pending: _Pending) -> MicroStep:
        """Gather the gradients of a micro-step -> queries, dL/dc_ij / p_ij (N,), dL/dc_iy (N,), c cosines.

        L is the mean over ranks and micro-steps of the ranks' losses.
        """
        found = pending.contrast
        assert found.target.grad is not None, "Centres.step before the loss's backward"
        assert found.negative.grad is not None
        others = found.negative.grad * self.scale / pending.partition.clamp_min(torch.finfo(found.target.dtype).tiny)
        mean = 1 / (self.world.size * len(self._pending))
        weights = self.world.all_gather(where_finite(torch.stack([others, found.target.grad], dim=1) * mean))
        return pending.queries, weights[:, 0].contiguous(), weights[:, 1].contiguous()

    def _begin(self, student: Tensor, labels: Tensor, teacher: Tensor | None) -> _Begun:
        self._labels.ask(labels)
        x = F.normalize(student.to(self._rows.store.length.dtype))
        return _Begun(student, x, self._send(x.detach(), labels, teacher))

    def _send(self, x: Tensor, labels: Tensor, teacher: Tensor | None) -> Callable[[], OwnRows]:
        """Start one all_gather of embeddings and labels, as bytes of one tensor -> a call that waits for it."""
        parts = [x] if teacher is None else [x, F.normalize(teacher.to(x.dtype))]
        words = labels[:, None].contiguous().view(x.dtype)  # the bits of an int64, not its value
        gathered = self.world.start_all_gather(torch.cat([*parts, words], dim=1))

        def received() -> OwnRows:
            everything = gathered()
            everyone = everything[:, -words.shape[1] :].contiguous().view(torch.int64).squeeze(1)
            owned, row = local_rows(everyone, self._rows.store.shard)
            dim = x.shape[1]
            pieces = [everything[:, i * dim : (i + 1) * dim].contiguous() for i in range(len(parts))]
            return OwnRows(self._rows.store, pieces[0], pieces[-1], owned, row)

        return received

    def _targets(self, own: OwnRows) -> Tensor:
        """Each sample's own unit centre (N, D), zero where another rank owns it."""
        if not len(own.store.shard):
            return torch.zeros_like(own.student)
        return own.store.directions(own.row) * own.owned[:, None]

    def _scatter(self, *parts: Tensor) -> list[Tensor]:
        """Sum (N, ...) tensors over ranks by one reduce_scatter -> their (b, ...) parts."""
        columns = [part if part.dim() == 2 else part[:, None] for part in parts]
        mine = self.world.reduce_scatter(torch.cat(columns, dim=1))
        pieces = mine.split([column.shape[1] for column in columns], dim=1)
        return [piece if part.dim() == 2 else piece.squeeze(1) for piece, part in zip(pieces, parts, strict=True)]


def _row_memory(
    store: CentreStore, world: World, config: CentresConfig, sampling: Sampling | None, accumulation: int
) -> RowMemory:
    if config.memory == "device":
        return RowsInStore(store, sampling)
    assert sampling is not None, "the configuration allows it with a sample alone"
    return RowsInWindows(store, world, sampling, accumulation)


def _correction(counts: Tensor) -> Tensor:
    """Log of other classes that may be compared with over those that are; counts (b, 2), the own class among both."""
    return ((counts[:, 0] - 1) / (counts[:, 1] - 1).clamp_min(1)).log()
