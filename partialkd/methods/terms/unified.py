"""Unified distillation (Mishra and Uikey, IJCB 2025, arXiv:2508.11376): hard instances, and relations to a memory bank.

The paper adds two losses: "instance-level embedding distillation", which aligns each embedding with the teacher's and
mines hard examples dynamically, and "relation-based pairwise similarity distillation", which draws the similarities of
pairs to the teacher's with a memory bank and mined samples. Its abstract is all that could be read, so these formulas
are inferred from it; there may be differences that are not listed here. With f_s, f_t of unit length and c_ij cosines:

    instance = mean over hard images of d_i,  d_i = 1 - <f_s,i, f_t,i>,  hard: d_i at least the mean of the global batch
    relation = mean over images, and their `hardest` entries of the bank, of (<f_s,i, m_j> - <f_t,i, m_j>)^2
    term = instance_weight * instance + relation_weight * relation

The bank m holds the teacher's embeddings of the last `bank` images of earlier steps, the same on all ranks: the
teacher's, since those do not age, so that student and teacher must have embeddings of one length. The entries mined are
those on which the two networks differ most. An empty bank gives a relation of 0. Gradient: to the student's embeddings;
what is mined is chosen without.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from partialkd.config.terms import UnifiedTermConfig
from partialkd.methods.terms.base import Term, TermInputs, TermSetting


class Unified(Term):
    """Keeps the bank (M, D), of which the last `filled` rows are used; a batch enters it once its step is taken."""

    def __init__(self, config: UnifiedTermConfig, setting: TermSetting) -> None:
        super().__init__(config, setting)
        self.weights, self.hardest = (config.instance_weight, config.relation_weight), config.hardest
        self.bank = torch.zeros(config.bank, setting.embedding_dim, device=setting.world.device)
        self.filled = torch.zeros(1, dtype=torch.float64)
        self._found: Tensor | None = None

    def loss(self, inputs: TermInputs) -> Tensor:
        batch = inputs.gathered
        assert batch.teacher is not None
        student, teacher = F.normalize(batch.student), F.normalize(batch.teacher)
        self._found = teacher.detach()
        apart = 1 - (student * teacher).sum(1)
        hard = apart.detach() >= apart.detach().mean()
        instance = (apart * hard).sum() / hard.sum()
        return self.weights[0] * instance + self.weights[1] * self._relation(student, teacher)

    def _relation(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean squared difference of cosines to the bank, over the entries that differ most; (N, D) of unit length."""
        count = int(self.filled)
        if not count:
            return student.sum() * 0
        known = self.bank[-count:].to(student.dtype)
        gap = (student @ known.T - teacher @ known.T).square()
        return gap.topk(min(self.hardest, count), dim=1).values.mean()

    def state(self) -> dict[str, Tensor]:
        return {"bank": self.bank, "filled": self.filled}

    def stepped(self) -> None:
        if self._found is not None:
            size = len(self.bank)
            self.bank = torch.cat([self.bank.to(self._found), self._found])[-size:]
            self.filled = (self.filled + len(self._found)).clamp_max(size)
        self._found = None

    def skipped(self) -> None:
        self._found = None
