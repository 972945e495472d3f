"""ArcFace (arXiv:1801.07698): trainable centres, target logit s * (cos(m1 * theta + m2) - m3)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from partialkd.centres import Centres
from partialkd.config import ArcFaceConfig
from partialkd.methods.base import CentreKind, Outcome
from partialkd.methods.margins import combined_margin, margin_softmax, straight_through


class ArcFace:
    """Standalone training: teachers and baselines."""

    kind: ClassVar[CentreKind] = "trainable"
    needs_teacher: ClassVar[bool] = False

    def __init__(self, config: ArcFaceConfig) -> None:
        self.scale, self.margin = config.scale, config.margin

    def loss(self, centres: Centres, student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Outcome:
        found = centres.contrast(student, labels)
        moved = combined_margin(found.target, self.margin.m1, self.margin.m2, self.margin.m3)
        if self.margin.gradient == "straight_through":
            moved = straight_through(found.target, moved)
        return Outcome(margin_softmax(found.negative, moved, self.scale), {"cosine": found.target.detach().mean()})
