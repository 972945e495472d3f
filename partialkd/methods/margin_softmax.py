"""Margin softmax over the class centres: ArcFace, CosFace, ArcDistill, CosDistill, and any of the named margins.

loss = mean -log( e^{s phi_y} / (e^{s phi_y} + sum_{j != y} e^{s cos theta_j}) ),

theta_j the angle between the student's embedding and the centre of class j, phi_y the target's cosine with the margin:
of the row below, or of a named margin (partialkd.methods.margins), which may add a regulariser and bend the cosines of
the negatives. The methods differ in phi and in whose the centres are (`centre_kind` of their sections): trained along,
for teachers and baselines, or the teacher's, which then enters through them alone and does not run during training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from partialkd.centres import Centres
from partialkd.config import (
    AdaDistillConfig,
    ArcDistillConfig,
    ArcFaceConfig,
    CosDistillConfig,
    CosFaceConfig,
    MethodSection,
)
from partialkd.methods.base import Outcome
from partialkd.methods.margins import (
    Margin,
    MarginInputs,
    PlainMargin,
    arc_margin,
    combined_margin,
    cos_margin,
    margin_softmax,
    named_margin,
    straight_through,
)
from partialkd.methods.stateful import Stateful


def _combined(cosine: Tensor, config: ArcFaceConfig) -> Tensor:
    margin = config.margin
    moved = combined_margin(cosine, margin.m1, margin.m2, margin.m3)
    return straight_through(cosine, moved) if margin.gradient == "straight_through" else moved


def _of_kind(cosine: Tensor, config: AdaDistillConfig) -> Tensor:
    assert isinstance(config.margin, float)
    return (arc_margin if config.kind == "arc" else cos_margin)(cosine, config.margin)


# Section of a method -> phi: (target cosine (b,), section) -> (b,).
MARGINS: dict[type[MethodSection], Callable[[Tensor, Any], Tensor]] = {
    ArcFaceConfig: _combined,  # arXiv:1801.07698, cos(m1 theta + m2) - m3
    CosFaceConfig: lambda cosine, config: cos_margin(cosine, config.margin),  # arXiv:1801.09414, cos(theta) - m
    ArcDistillConfig: lambda cosine, config: arc_margin(cosine, config.margin),  # AdaDistill, arXiv:2407.01332
    CosDistillConfig: lambda cosine, config: cos_margin(cosine, config.margin),  # AdaDistill, arXiv:2407.01332
    AdaDistillConfig: _of_kind,  # either of these
}


def margin_of(config: MethodSection) -> Margin:
    """Make the margin of a method: the one that its section names, or its row of `MARGINS`."""
    if config.named_margin:
        return named_margin(config.named_margin)
    phi = MARGINS[type(config)]
    return PlainMargin(lambda cosine: phi(cosine, config))


class MarginSoftmax(Stateful):
    """Reports the mean target cosine, and what its margin reports; keeps what its margin keeps."""

    def __init__(self, config: MethodSection) -> None:
        self.config = config
        self.margin = margin_of(config)

    def loss(self, centres: Centres, student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Outcome:
        found = centres.contrast(student, labels, bending=self.margin.bending)
        return self.outcome(MarginInputs(found, student, centres))

    def outcome(self, inputs: MarginInputs, values: Mapping[str, Tensor] | None = None) -> Outcome:
        """Softmax with the margin; values: further ones for the log."""
        found, moved = inputs.found, self.margin.moved(inputs)
        loss = margin_softmax(found.negative, moved.target, self.config.scale) + moved.added
        return Outcome(loss, {**(values or {}), "cosine": found.target.detach().mean(), **moved.values})

    def state(self) -> dict[str, Tensor]:
        return self.margin.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.margin.load_state(tensors)

    def stepped(self) -> None:
        self.margin.stepped()

    def skipped(self) -> None:
        self.margin.skipped()
