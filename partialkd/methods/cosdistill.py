"""CosDistill (AdaDistill, ECCV 2024, arXiv:2407.01332): as ArcDistill, target logit s * (cos(theta_y) - m)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from partialkd.centres import Centres
from partialkd.config import CosDistillConfig
from partialkd.methods.base import CentreKind, Outcome
from partialkd.methods.margins import cos_margin, margin_softmax


class CosDistill:
    """The teacher enters through its centres alone; it does not run during training."""

    kind: ClassVar[CentreKind] = "fixed"
    needs_teacher: ClassVar[bool] = False

    def __init__(self, config: CosDistillConfig) -> None:
        self.scale, self.margin = config.scale, config.margin

    def loss(self, centres: Centres, student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Outcome:
        found = centres.contrast(student, labels)
        moved = cos_margin(found.target, self.margin)
        return Outcome(margin_softmax(found.negative, moved, self.scale), {"cosine": found.target.detach().mean()})
