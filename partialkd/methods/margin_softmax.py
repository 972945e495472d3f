"""Margin softmax over the class centres, with one margin for all samples: ArcFace, CosFace, ArcDistill, CosDistill.

loss = mean -log( e^{s phi(theta_y)} / (e^{s phi(theta_y)} + sum_{j != y} e^{s cos theta_j}) ),

theta_j the angle between the student's embedding and the centre of class j, phi the margin of the row below. No other
term. The rows differ in phi and in whose the centres are (`centre_kind` of their sections): trained along, for teachers
and baselines, or the teacher's, which then enters through them alone and does not run during training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from partialkd.centres import Centres
from partialkd.config import ArcDistillConfig, ArcFaceConfig, CosDistillConfig, CosFaceConfig, MethodSection
from partialkd.methods.base import Outcome
from partialkd.methods.margins import arc_margin, combined_margin, cos_margin, margin_softmax, straight_through


def _combined(cosine: Tensor, config: ArcFaceConfig) -> Tensor:
    margin = config.margin
    moved = combined_margin(cosine, margin.m1, margin.m2, margin.m3)
    return straight_through(cosine, moved) if margin.gradient == "straight_through" else moved


# Section of a method -> phi: (target cosine (b,), section) -> (b,).
MARGINS: dict[type[MethodSection], Callable[[Tensor, Any], Tensor]] = {
    ArcFaceConfig: _combined,  # arXiv:1801.07698, cos(m1 theta + m2) - m3
    CosFaceConfig: lambda cosine, config: cos_margin(cosine, config.margin),  # arXiv:1801.09414, cos(theta) - m
    ArcDistillConfig: lambda cosine, config: arc_margin(cosine, config.margin),  # AdaDistill, arXiv:2407.01332
    CosDistillConfig: lambda cosine, config: cos_margin(cosine, config.margin),  # AdaDistill, arXiv:2407.01332
}


class MarginSoftmax:
    """The method of a section in `MARGINS`; reports the mean target cosine."""

    def __init__(self, config: MethodSection) -> None:
        self.config: MethodSection = config
        self.phi = MARGINS[type(config)]

    def loss(self, centres: Centres, student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Outcome:
        found = centres.contrast(student, labels)
        loss = margin_softmax(found.negative, self.phi(found.target, self.config), self.config.scale)
        return Outcome(loss, {"cosine": found.target.detach().mean()})
