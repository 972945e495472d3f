"""Triplet distillation (ICIP 2020, arXiv:1905.04457): the teacher says how much further off a negative must be.

    mean over triplets (a, p, n) of max(0, d_s(a, p) - d_s(a, n) + m),
    m = m_min + (m_max - m_min) * D / max D,   D = max(0, d_t(a, n) - d_t(a, p))

with d the squared Euclidean distance of normalised embeddings ("l2") or their angle ("angle"), and negatives that are
semi-hard to the student: 0 < d(a, n) - d(a, p) < 0.35, squared distances for both. As in the code of MarginDistillation
(david-svitov/margindistillation at 495ace6), which compares with it. Differs: its triplets are found before the step
among images embedded for that, one negative drawn at random for each pair and max D taken per device; ours are those
of the global batch, every pair in both roles, and a pair's loss is the mean over all its semi-hard negatives, which is
what a random one gives on average. Pairs without any have no part; a batch without triplets has the value 0.

Needs batches with several images of an identity (data.sampler). Cosines are clamped to +-(1 - 1e-6) before the
arccosine, whose slope is infinite at 1.
"""

from __future__ import annotations

from torch import Tensor

from partialkd.config.terms import TripletTermConfig
from partialkd.methods.margins import EDGE
from partialkd.methods.terms.base import Term, TermInputs, TermSetting
from partialkd.methods.terms.relations import cosines


class TripletDistillation(Term):
    """Mean over the pairs of one identity in the global batch that have a semi-hard negative."""

    def __init__(self, config: TripletTermConfig, setting: TermSetting) -> None:
        super().__init__(config, setting)
        self.low, self.high, self.semi_hard = config.margin_min, config.margin_max, config.semi_hard
        self.measure = squared if config.distance == "l2" else angles

    def loss(self, inputs: TermInputs) -> Tensor:
        batch = inputs.gathered
        assert batch.teacher is not None
        student, teacher = cosines(batch.student), cosines(batch.teacher)
        same = batch.labels[:, None] == batch.labels
        pairs = same.clone().fill_diagonal_(False).nonzero()  # (Q, 2)
        if not len(pairs):
            return student.sum() * 0
        nearness = gaps(squared(student.detach()), pairs)
        chosen = (nearness > 0) & (nearness < self.semi_hard) & ~same[pairs[:, 0]]
        certainty = gaps(self.measure(teacher), pairs).clamp_min(0)
        largest = certainty.where(chosen, 0).max().clamp_min(1e-6)
        margin = self.low + (self.high - self.low) * certainty / largest
        losses = (margin - gaps(self.measure(student), pairs)).clamp_min(0).where(chosen, 0)
        counts = chosen.sum(1)
        return (losses.sum(1) / counts.clamp_min(1)).sum() / (counts > 0).sum().clamp_min(1)


def gaps(apart: Tensor, pairs: Tensor) -> Tensor:
    """Distances (N, N), pairs (Q, 2) of anchor and positive -> how much further off each image is (Q, N)."""
    anchor, positive = pairs.unbind(1)
    return apart[anchor] - apart[anchor, positive][:, None]


def squared(cosine: Tensor) -> Tensor:
    """Squared Euclidean distances of unit vectors."""
    return 2 - 2 * cosine


def angles(cosine: Tensor) -> Tensor:
    """In radians."""
    return cosine.clamp(EDGE - 1, 1 - EDGE).acos()
