"""What a method is: it turns embeddings into a loss over the class centres.

Where its centres come from and what it asks of a teacher stands in its section (partialkd.config.methods).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from partialkd.centres import Centres
from partialkd.config import MethodSection


@dataclass(frozen=True)
class Outcome:
    """One rank's loss of one micro-step, and numbers for the log (each the rank's mean, without gradient)."""

    loss: Tensor  # ()
    values: dict[str, Tensor] = field(default_factory=dict)  # ()


class Method(Protocol):
    """Turns embeddings into a loss."""

    config: MethodSection

    def loss(self, centres: Centres, student: Tensor, labels: Tensor, teacher: Tensor | None) -> Outcome:
        """The mean loss over these b samples: student (b, D) with gradient, labels (b,), teacher (b, D) or None."""
