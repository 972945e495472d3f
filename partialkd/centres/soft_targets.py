"""Soft targets: a teacher's distribution over all classes beside the student's, at a temperature, sharded over ranks.

With z_j = scale * <x, u_j> and z'_j = teacher_scale * <f, v_j>, f the teacher's embedding and v_j its centres (they may
be the student's u_j), p' = softmax(z' / T) and p = softmax(z / T), the divergence that distils them is

    KL(p' || p) = sum_j p'_j (z'_j - z_j) / T - log Z' + log Z,    gradient to x: scale / T * (O - O'),

O = sum_j p_j u_j, O' = sum_j p'_j u_j: sums of the kind that the sweep makes for the cross-entropy (sweeps/soft.py).
Here they are over all classes but the sample's own, whose two logits a term adds itself, with whatever margin it likes
(partialkd.methods.terms.soft). Nothing of size (N, C) exists, and ranks are merged by addition.

Groups (`share`): primary are, for each sample, its own class and then those that the student finds most probable at
T = 1, until their probabilities reach `share`; at most `most` beside its own. They are found exactly over all shards:
each rank's largest logits, merged.

Collectives: one all_gather of the teacher's embeddings; what the engine's reduce_scatter carries grows by 2 D + 4
numbers per sample. With groups D + 2 more, and one all_reduce (2, N), one all_gather (N, most), one (b,) before.
Source: Hinton et al., arXiv:1503.02531; groups: Zhao et al., GKD, arXiv:2304.04462.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from partialkd.centres.contrast import with_slope
from partialkd.centres.gathered import OwnRows, where_finite
from partialkd.centres.logit_noise import LogitNoise
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps.base import MicroStep, Queries, offset_of
from partialkd.centres.sweeps.products import Products
from partialkd.centres.sweeps.soft import SoftMicroStep, SoftQueries, SoftSums, SoftSweep
from partialkd.world.world import World


@dataclass(frozen=True)
class SoftTargets:
    """What the soft targets are made of."""

    temperature: float
    teacher_scale: float
    store: CentreStore | None = None  # the teacher's centres, in the same shards; None: they are the student's
    share: float | None = None  # of the student's probability that the primary classes have; None: no groups
    most: int = 0  # primary classes of a sample, beside its own
    noise: LogitNoise | None = None  # on the teacher's logits; a micro-step then has keys


@dataclass(frozen=True)
class SoftContrast:
    """One rank's samples under student and teacher at the temperature T, over other classes than the own.

    With groups: over the primary ones; `rest` and `rest_teacher` are of the others.
    """

    student: Tensor  # (b,) log sum exp(z / T), with gradient
    teacher: Tensor  # (b,) log sum exp(z' / T)
    crossed: Tensor  # (b,) mean of z / T, weighted with exp(z' / T), with gradient
    logits: Tensor  # (b,) mean of z' / T, weighted with exp(z' / T)
    target: Tensor  # (b,) the student's cosine with the own centre, with gradient
    teacher_target: Tensor  # (b,) the teacher's
    rest: Tensor | None = None  # (b,) as `student`
    rest_teacher: Tensor | None = None  # (b,) as `teacher`
    own_noise: Tensor | None = None  # (b,) factor of the teacher's logit of the own class


class SoftPass:
    """The soft targets of a phase: `send` and `begin` in every micro-step."""

    def __init__(
        self, targets: SoftTargets, world: World, scale: float, products: Products, chunk_rows: int | None
    ) -> None:
        self.targets, self.world = targets, world
        scales = scale, targets.teacher_scale, targets.temperature
        self.sweep = SoftSweep(*scales, products, chunk_rows, targets.noise)
        self._received: Callable[[], Tensor] | None = None
        self._keys: Tensor | None = None

    def send(self, teacher: Tensor, dtype: torch.dtype, keys: Tensor | None = None) -> None:
        """Start the all_gather of the teacher's embeddings (b, D of the teacher), which need not be normalised.

        keys: (b,) of the noise on its logits.
        """
        self._received = self.world.start_all_gather(F.normalize(teacher.detach().to(dtype)))
        self._keys = None if keys is None else self.world.all_gather(keys.to(teacher.device))

    def begin(self, own: OwnRows, queries: Queries) -> SoftStep:
        """Compute this shard's sums, those of the cross-entropy among them; collective."""
        assert self._received is not None, "Centres.contrast without Centres.teach"
        received, self._received = where_finite(self._received()), None
        soft = SoftQueries(queries, received, self.targets.store or own.store, keys=self._keys)
        if self.targets.share is not None:
            soft = replace(soft, least=self._least(own, soft, self.targets.share))
        return SoftStep(self, own, soft, self.sweep.sums(own.store, soft))

    def _least(self, own: OwnRows, queries: SoftQueries, share: float) -> Tensor:
        """Find the least z / T of each sample's primary classes (N,), infinite where only its own is; collective."""
        sweep, world, most = self.sweep, self.world, self.targets.most
        largest, total = sweep.largest(own.store, queries, most)
        target = torch.zeros_like(total)
        if len(own.store.shard):
            cosine = (own.student * own.store.directions(own.row)).sum(1)
            target = (sweep.scale * cosine - offset_of(sweep.scale)).exp() * own.owned
        b = len(total) // world.size
        mine = slice(world.rank * b, (world.rank + 1) * b)
        total, target = world.sum(torch.stack([total, target]))[:, mine]
        everywhere = world.all_gather(largest.T).view(world.size, world.size * b, most)[:, mine]
        logits = everywhere.transpose(0, 1).reshape(b, -1).topk(most, dim=1).values
        masses = (logits * self.targets.temperature - offset_of(sweep.scale)).exp()
        before = target[:, None] + masses.cumsum(1) - masses  # of what is more probable than each
        count = (before < share * (total + target)[:, None]).sum(1)
        least = logits.gather(1, (count - 1).clamp_min(0)[:, None]).squeeze(1)
        return world.all_gather(torch.where(count > 0, least, torch.inf))


class SoftStep:
    """The sums of one micro-step: `parts` of this shard, of which `finish` makes what terms take."""

    def __init__(self, made_by: SoftPass, own: OwnRows, queries: SoftQueries, sums: SoftSums) -> None:
        self.made_by, self.queries = made_by, queries
        assert sums.hard is not None
        self.hard = sums.hard.rows, sums.hard.terms
        target = torch.zeros_like(sums.logits)  # the teacher's target cosine
        if len(own.store.shard):
            target = (queries.teacher * queries.store.directions(own.row)).sum(1) * own.owned
        # To be summed over ranks: (N, D) of every sum of rows, (N,) of the others.
        self.parts = [sums.student.rows, sums.teacher.rows, sums.student.terms, sums.teacher.terms, sums.logits, target]
        if sums.rest is not None and sums.rest_teacher is not None:
            self.parts += [sums.rest.rows, sums.rest.terms, sums.rest_teacher]
        if (noise := made_by.targets.noise) is not None:
            assert queries.keys is not None
            factors = noise.factors(queries.keys, own.row + own.store.shard.start).to(target)
            self.parts.append(factors * own.owned)

    def finish(self, x: Tensor, target: Tensor, parts: Sequence[Tensor], correction: Tensor) -> SoftPending:
        """Make of the parts (b, ...), summed, what terms take: x (b, D) unit and target (b,) with gradient.

        correction: (b,) added to the logs of sums over other classes.
        """
        rows, teacher_rows, terms, teacher_terms, logits, teacher_target, *rest = parts
        own_noise = rest.pop() if self.made_by.targets.noise else None
        sweep = self.made_by.sweep
        over = sweep.scale / sweep.temperature
        log_of = lambda terms, offset: terms.log() + offset + correction
        slope = lambda rows, terms: over * rows * _inverse(terms)[:, None]
        found = SoftContrast(
            student=with_slope(log_of(terms, sweep.offset), x, slope(rows, terms)),
            teacher=log_of(teacher_terms, sweep.teacher_offset),
            crossed=(x * slope(teacher_rows, teacher_terms)).sum(1),
            logits=logits * _inverse(teacher_terms),
            target=target,
            teacher_target=teacher_target,
            rest=with_slope(log_of(rest[1], sweep.offset), x, slope(rest[0], rest[1])) if rest else None,
            rest_teacher=log_of(rest[2], sweep.teacher_offset) if rest else None,
            own_noise=own_noise,
        )
        weighed = [(found.student, terms), (found.crossed, teacher_terms)]
        if found.rest is not None:
            weighed.append((found.rest, rest[1]))
        return SoftPending(self.made_by, self.queries, found, weighed)


@dataclass(frozen=True)
class SoftPending:
    """What the movement of trainable rows by a micro-step needs beside the cross-entropy's part."""

    made_by: SoftPass
    queries: SoftQueries
    found: SoftContrast
    weighed: Sequence[tuple[Tensor, Tensor]]  # values with gradient (b,), and the sums of terms (b,) that they are of

    def retain_grad(self) -> None:
        """Keep the gradients that `micro_step` takes."""
        for value, _ in self.weighed:
            value.retain_grad()

    def micro_step(self, hard: MicroStep, micro_steps: int) -> SoftMicroStep:
        """Gather the weights of the terms, collectively, beside those that the cross-entropy has."""
        world, sweep, (_, own, target) = self.made_by.world, self.made_by.sweep, hard
        over = sweep.scale / sweep.temperature / (world.size * micro_steps)
        weights = [_gradient(value) * _inverse(terms) * over for value, terms in self.weighed]
        gathered = world.all_gather(where_finite(torch.stack(weights, dim=1)))
        return SoftMicroStep(self.queries, target, own, *(column.contiguous() for column in gathered.unbind(1)))


def _inverse(terms: Tensor) -> Tensor:
    return 1 / terms.clamp_min(torch.finfo(terms.dtype).tiny)


def _gradient(value: Tensor) -> Tensor:
    """Give the gradient of a value, zeros where no term has used it."""
    return torch.zeros_like(value) if value.grad is None else value.grad
