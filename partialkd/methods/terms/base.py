"""What an additive term of a loss is, on many ranks.

Each rank returns its own part, and the parts' mean over the ranks is the term of the global batch; likewise the mean of
their gradients is its gradient, since plain averaging over ranks is what follows (docs/flows.md).
- A term that looks at each image by itself returns the mean over the rank's own images.
- A term of the whole batch computes its value over `TermInputs.gathered`, the same on every rank: there only this
  rank's rows carry gradient, `world_size` times as much of it, so that the mean over ranks is the gradient of all rows.

What a term asks of a teacher, of the batch and of the sampler stands in its section (partialkd.config.terms). Tensors
that it keeps from step to step: partialkd.methods.stateful.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from partialkd.centres import Centres
from partialkd.config import TermSection
from partialkd.methods.stateful import Stateful
from partialkd.world.shard import shard_of
from partialkd.world.world import World


@dataclass(frozen=True)
class TermSetting:
    """What a term is built for, known before the first batch."""

    world: World = field(default_factory=World)
    num_classes: int = 0
    embedding_dim: int = 0  # of the student

    @property
    def shard(self) -> range:
        """Class ids that this rank owns."""
        return shard_of(self.num_classes, self.world.rank, self.world.size)


@dataclass(frozen=True)
class GlobalBatch:
    """The micro-steps of all ranks in the order of ranks, N = world_size * b samples."""

    student: Tensor  # (N, D), not normalised; world_size times the gradient to this rank's rows, none to others
    labels: Tensor  # (N,) int64
    teacher: Tensor | None  # (N, D of the teacher), not normalised, in the precision of the student's; or None


class MapPair(NamedTuple):
    """What a block of each network gave for this rank's images."""

    student: Tensor  # (b, C, H, W) with gradient; C of the teacher's where the term is adapted
    teacher: Tensor  # (b, C', H', W') without gradient


@dataclass(frozen=True)
class TermInputs:
    """One rank's micro-step as a term sees it."""

    student: Tensor  # (b, D) with gradient, not normalised
    labels: Tensor  # (b,) int64
    teacher: Tensor | None  # (b, D) without gradient, not normalised; None where neither method nor terms ask for it
    world: World
    centres: Centres | None = None  # the phase's own, after the method's loss: `contrast`, or rows of `centres.store`
    taps: Mapping[TermSection, Sequence[MapPair]] = field(default_factory=dict)  # maps of the terms that have taps

    @cached_property
    def gathered(self) -> GlobalBatch:
        """Gather the global batch, collectively: one all_gather, whichever terms ask for it."""
        x, labels = self.student, self.labels
        parts = [x.detach()] if self.teacher is None else [x.detach(), self.teacher.to(x.dtype)]
        words = labels[:, None].contiguous().view(x.dtype)  # the bits of an int64, not its value
        everything = self.world.all_gather(torch.cat([*parts, words], dim=1))
        student, *teacher, words = everything.split([part.shape[1] for part in [*parts, words]], dim=1)
        own = x + (self.world.size - 1) * (x - x.detach())  # the values of x, with world_size times its gradient
        before = self.world.rank * len(x)
        student = torch.cat([student[:before], own, student[before + len(x) :]])
        return GlobalBatch(student, words.contiguous().view(torch.int64).squeeze(1), teacher[0] if teacher else None)


class Term(Stateful):
    """One term; its weight is applied by whoever adds it."""

    def __init__(self, config: TermSection, setting: TermSetting) -> None:
        self.config, self.setting = config, setting

    def loss(self, inputs: TermInputs) -> Tensor:
        """This rank's part of the term, with gradient: ()."""
        raise NotImplementedError
