"""What a method is: where its centres come from, which margin it uses, what it adds and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from partialkd.centres import Centres

CentreKind = Literal["trainable", "fixed", "ema"]


@dataclass(frozen=True)
class Outcome:
    """One rank's loss of one micro-step, and numbers for the log (each the rank's mean, without gradient)."""

    loss: Tensor  # ()
    values: dict[str, Tensor] = field(default_factory=dict)  # ()


class Method(Protocol):
    """Turns embeddings into a loss."""

    kind: ClassVar[CentreKind]
    needs_teacher: ClassVar[bool]

    def loss(self, centres: Centres, student: Tensor, labels: Tensor, teacher: Tensor | None) -> Outcome:
        """student (b, D) with gradient, labels (b,), teacher (b, D) or None -> the mean loss over these b samples."""
