"""CosFace (arXiv:1801.09414): trainable centres, target logit s * (cos(theta) - m)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from partialkd.centres import Centres
from partialkd.config import CosFaceConfig
from partialkd.methods.base import CentreKind, Outcome
from partialkd.methods.margins import cos_margin, margin_softmax


class CosFace:
    """Standalone training: teachers and baselines."""

    kind: ClassVar[CentreKind] = "trainable"
    needs_teacher: ClassVar[bool] = False

    def __init__(self, config: CosFaceConfig) -> None:
        self.scale, self.margin = config.scale, config.margin

    def loss(self, centres: Centres, student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Outcome:
        found = centres.contrast(student, labels)
        moved = cos_margin(found.target, self.margin)
        return Outcome(margin_softmax(found.negative, moved, self.scale), {"cosine": found.target.detach().mean()})
