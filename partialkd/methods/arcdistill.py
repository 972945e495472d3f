"""ArcDistill (AdaDistill, ECCV 2024, arXiv:2407.01332): margin softmax against the teacher's fixed centres.

loss = mean -log( e^{s cos(theta_y + m)} / (e^{s cos(theta_y + m)} + sum_{j != y} e^{s cos theta_j}) ),
theta_j the angle between the student's embedding and the teacher's centre of class j. No other term.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from partialkd.centres import Centres
from partialkd.config import ArcDistillConfig
from partialkd.methods.base import CentreKind, Outcome
from partialkd.methods.margins import arc_margin, margin_softmax


class ArcDistill:
    """The teacher enters through its centres alone; it does not run during training."""

    kind: ClassVar[CentreKind] = "fixed"
    needs_teacher: ClassVar[bool] = False

    def __init__(self, config: ArcDistillConfig) -> None:
        self.scale, self.margin = config.scale, config.margin

    def loss(self, centres: Centres, student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Outcome:
        found = centres.contrast(student, labels)
        moved = arc_margin(found.target, self.margin)
        return Outcome(margin_softmax(found.negative, moved, self.scale), {"cosine": found.target.detach().mean()})
