"""DarkRank (AAAI 2018, arXiv:1707.01220): each image's nearest others, in the order in which the teacher ranks them.

Score of image j for the query i, of normalised embeddings: S_ij = -alpha |f_i - f_j|^beta. An order pi of L candidates
has the probability

    P(pi) = prod_{a <= L} exp(S_pi(a)) / sum_{b >= a} exp(S_pi(b))

hard: mean over i of -log P_s(pi_t), pi_t the teacher's order, nearest first
soft: mean over i of KL(P_t || P_s), over all L! orders

Candidates are the teacher's L nearest images other than the query, equal ones in the order of the batch. The default,
hard with L = 3 and alpha = beta = 3, is that of EKD's code for faces (Tencent/TFace at 82c9cbb, tasks/ekd); the
authors of RKD take 4. Differs from both: the query is left out by its place, not as the nearest of all, which
another image equal to it might be.
"""

from __future__ import annotations

from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from partialkd.config.terms import DarkRankTermConfig
from partialkd.methods.terms.base import Term, TermInputs, TermSetting
from partialkd.methods.terms.relations import distances


class DarkRank(Term):
    """Mean over the queries of the global batch."""

    def __init__(self, config: DarkRankTermConfig, setting: TermSetting) -> None:
        super().__init__(config, setting)
        self.alpha, self.beta, self.length = config.alpha, config.beta, config.length
        self.compare = hard if config.kind == "hard" else soft

    def loss(self, inputs: TermInputs) -> Tensor:
        batch = inputs.gathered
        assert batch.teacher is not None
        student, teacher = (distances(F.normalize(x)) for x in (batch.student, batch.teacher))
        itself = torch.eye(len(student), dtype=torch.bool, device=student.device)
        nearest = teacher.masked_fill(itself, torch.inf).argsort(dim=1, stable=True)[:, : self.length]
        scores = (-self.alpha * apart.gather(1, nearest).pow(self.beta) for apart in (student, teacher))
        return self.compare(*scores).mean()


def hard(student: Tensor, _: Tensor) -> Tensor:
    """Scores (N, L) in the teacher's order -> (N,)."""
    return -log_probability(student)


def soft(student: Tensor, teacher: Tensor) -> Tensor:
    """Scores (N, L) -> (N,)."""
    orders = torch.tensor(list(permutations(range(student.shape[1]))), device=student.device)  # (L!, L)
    of_student, of_teacher = (log_probability(scores[:, orders]) for scores in (student, teacher))
    return (of_teacher.exp() * (of_teacher - of_student)).sum(1)


def log_probability(scores: Tensor) -> Tensor:
    """Scores (..., L) in an order -> log of that order's probability (...)."""
    left = [scores[..., place:].logsumexp(-1) for place in range(scores.shape[-1])]
    return (scores - torch.stack(left, dim=-1)).sum(-1)
