"""Angular distillation (ShrinkTeaNet): directions of embeddings, and of maps inside.

Value: mean over images of 1 - cos(f_s, f_t), plus `layer_weight` times the sum over the pairs of taps of the mean of
1 - cos(r(h_s), h_t), where a map is one vector (C H W,) and r the trained adapter, a 1x1 convolution.
Gradient: to the student and its adapters.
Source: arXiv:1905.10620, its angular distillation loss for embeddings and for intermediate layers. Inferred: the
adapter, of which the paper says only that it matches dimensions. Differs: maps of two sizes are averaged down to the
smaller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from partialkd.methods.terms.base import MapPair, Term, TermInputs, TermSetting
from partialkd.methods.terms.embedding import cosine
from partialkd.methods.terms.maps import alike

if TYPE_CHECKING:
    from partialkd.config.terms import AngularTermConfig


class Angular(Term):
    """Mean over this rank's images."""

    def __init__(self, config: AngularTermConfig, setting: TermSetting) -> None:
        super().__init__(config, setting)
        self.layer_weight = config.layer_weight

    def loss(self, inputs: TermInputs) -> Tensor:
        assert inputs.teacher is not None
        embeddings = cosine(inputs.student, inputs.teacher.to(inputs.student.dtype)).mean()
        if not self.layer_weight:
            return embeddings
        return embeddings + self.layer_weight * sum(between(pair) for pair in inputs.taps[self.config])


def between(pair: MapPair) -> Tensor:
    """Mean over images of one minus the cosine of whole maps: ()."""
    student, teacher = alike(pair)
    return cosine(student.flatten(1), teacher.flatten(1)).mean()
