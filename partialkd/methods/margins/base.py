"""What a margin is: it turns the target cosines of a micro-step into those that the softmax sees.

Its section (partialkd.config.margins) says what collectives it makes and whether it bends negatives. Numbers that it
keeps from step to step are in checkpoints and equal on all ranks (partialkd.methods.stateful): they are made of the
global batch. With gradient accumulation they move at every micro-step, by the micro-step's part of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from partialkd.centres import Centres, Contrast
from partialkd.centres.contrast import Bending
from partialkd.methods.stateful import Stateful


@dataclass(frozen=True)
class MarginInputs:
    """One rank's micro-step as a margin sees it."""

    found: Contrast
    student: Tensor  # (b, D) with gradient, not normalised
    centres: Centres
    lag: Tensor | None = None  # (b,) how far the student is behind a teacher that is sure (adadistill.py)


@dataclass(frozen=True)
class Moved:
    """What the margin makes of it."""

    target: Tensor  # (b,) phi, in the place of the target cosine
    added: Tensor | float = 0.0  # (), to the loss
    values: dict[str, Tensor] = field(default_factory=dict)  # () each, for the log


class Margin(Stateful):
    """One margin; numbers that do not move, and negatives as they are, unless a class says otherwise."""

    bending: Bending | None = None

    def moved(self, inputs: MarginInputs) -> Moved:
        raise NotImplementedError


class PlainMargin(Margin):
    """A function of the target cosine alone."""

    def __init__(self, phi: Callable[[Tensor], Tensor]) -> None:
        self.phi = phi

    def moved(self, inputs: MarginInputs) -> Moved:
        return Moved(self.phi(inputs.found.target))


class MovingMargin(Margin):
    """A margin with numbers that follow those of the batches: x <- (1 - share) x + share * batch, in float64."""

    def __init__(self, start: Sequence[float], share: float) -> None:
        self.share = share
        self._kept = self._now = torch.tensor(start, dtype=torch.float64)

    def follow(self, batch: Tensor) -> Tensor:
        """Move towards the numbers (n,) of the global batch -> where they are now (n,), in its type."""
        now = self._now.to(batch.device)
        self._now = now + self.share * (batch.double() - now)
        return self._now.to(batch.dtype)

    def state(self) -> dict[str, Tensor]:
        return {"moving": self._kept}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self._kept = self._now = tensors["moving"].double()

    def stepped(self) -> None:
        self._kept = self._now

    def skipped(self) -> None:
        self._now = self._kept
