"""What an additive term of a loss is, on many ranks.

Each rank returns its own part, and the parts' mean over the ranks is the term of the global batch; likewise the mean of
their gradients is its gradient, since plain averaging over ranks is what follows (docs/one_batch.md). A term that looks
at each image by itself returns the mean over the rank's own images. What a term asks of a teacher stands in its section
(partialkd.config.terms).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from partialkd.config import TermSection
from partialkd.world.world import World


@dataclass(frozen=True)
class TermInputs:
    """One rank's micro-step as a term sees it."""

    student: Tensor  # (b, D) with gradient, not normalised
    labels: Tensor  # (b,) int64
    teacher: Tensor | None  # (b, D) without gradient, not normalised; None where neither method nor terms ask for it
    world: World


class Term(Protocol):
    """One term; its weight is applied by whoever adds it."""

    config: TermSection

    def loss(self, inputs: TermInputs) -> Tensor:
        """This rank's part of the term, with gradient: ()."""
