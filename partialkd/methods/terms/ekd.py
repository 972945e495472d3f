"""Evaluation-oriented distillation (EKD, CVPR 2022, arXiv:2206.02325): pairs lie among thresholds as the teacher's do.

t_k is the cosine that 1 of 10^k pairs of two identities exceed, k = 1..6, a moving average over batches for student
and teacher each. The rank of a pair of cosine c is r(c) = sum_k sigmoid((c - t_k) / 0.01); the loss is

    0.02 * mean over pairs of one identity of (r_s - r_t)^2
    + 0.01 * mean over the 2000 pairs of two identities nearest to the student of (r_s - r_t)^2

with the thresholds after this batch's update. Gradient: through the student's cosines, not through its thresholds.
All of this as in the authors' code (Tencent/TFace at 82c9cbb, tasks/ekd), the thresholds' beginning at 0 too; a batch
of n pairs of two identities gives the (n // 10^k)-th largest, so those beyond n are its maximum. Differs: where a
batch has no pair of one kind that part is 0, theirs NaN; and the method's own loss is over the whole batch, theirs over
the half that is drawn at random (data.sampler = "half_pk").
"""

from __future__ import annotations

import torch
from torch import Tensor

from partialkd.config.terms import EkdTermConfig
from partialkd.methods.terms.base import Term, TermInputs, TermSetting
from partialkd.methods.terms.relations import cosines, mean

PAIRS = [10**k for k in range(1, 7)]  # one of these many may exceed a threshold


class EvaluationOriented(Term):
    """Keeps both networks' thresholds (6,), by which a batch counts once its step is taken."""

    def __init__(self, config: EkdTermConfig, setting: TermSetting) -> None:
        super().__init__(config, setting)
        self.positive_weight, self.negative_weight = config.positive_weight, config.negative_weight
        self.hardest, self.temperature, self.update = config.hardest, config.temperature, config.update
        self.thresholds = {
            name: torch.zeros(len(PAIRS), dtype=torch.float64, device=setting.world.device)
            for name in ("student", "teacher")
        }
        self._found: dict[str, Tensor] = {}

    def loss(self, inputs: TermInputs) -> Tensor:
        batch = inputs.gathered
        assert batch.teacher is not None
        first, second = torch.triu_indices(len(batch.labels), len(batch.labels), 1, device=batch.labels.device)
        one = batch.labels[first] == batch.labels[second]
        student, teacher = (cosines(x)[first, second] for x in (batch.student, batch.teacher))
        self._found = {
            "student": self._moved("student", student[~one]),
            "teacher": self._moved("teacher", teacher[~one]),
        }
        apart = lambda s, t: mean((self._rank("student", s) - self._rank("teacher", t)).square())
        hardest = student[~one].detach().argsort(descending=True, stable=True)[: self.hardest]
        positive = apart(student[one], teacher[one])
        negative = apart(student[~one][hardest], teacher[~one][hardest])
        return self.positive_weight * positive + self.negative_weight * negative

    def _moved(self, name: str, cosines: Tensor) -> Tensor:
        """Thresholds after these cosines of pairs of two identities."""
        before = self.thresholds[name]
        if not len(cosines):
            return before
        falling = cosines.detach().sort(descending=True).values
        now = falling[[len(cosines) // pairs for pairs in PAIRS]]
        return before + self.update * (now.to(before) - before)

    def _rank(self, name: str, cosines: Tensor) -> Tensor:
        """Cosines (n,) -> r (n,)."""
        return ((cosines[:, None] - self._found[name].to(cosines)) / self.temperature).sigmoid().sum(1)

    def state(self) -> dict[str, Tensor]:
        return self.thresholds

    def stepped(self) -> None:
        self.thresholds = self.thresholds | self._found
        self._found = {}

    def skipped(self) -> None:
        self._found = {}
