"""Correlation congruence (CCKD, ICCV 2019, arXiv:1904.01802): mean over all pairs of (K_s - K_t)^2.

K is the Gaussian kernel of normalised embeddings by its Taylor series of order P:

    exp(-gamma |x - y|^2) ~ sum_{p <= P} exp(-2 gamma) (2 gamma)^p / p! <x, y>^p

gamma 0.4 and P 2 as published. The embeddings' own distance, which the paper adds, is the term `embedding`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from partialkd.config.terms import CckdTermConfig
from partialkd.methods.terms.base import Term, TermInputs, TermSetting
from partialkd.methods.terms.relations import cosines


class CorrelationCongruence(Term):
    """Mean squared difference of the two kernels over the global batch."""

    def __init__(self, config: CckdTermConfig, setting: TermSetting) -> None:
        super().__init__(config, setting)
        gamma = config.gamma
        self.series = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(config.order + 1)]

    def loss(self, inputs: TermInputs) -> Tensor:
        batch = inputs.gathered
        assert batch.teacher is not None
        return F.mse_loss(self.kernel(batch.student), self.kernel(batch.teacher))

    def kernel(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, N)."""
        cosine = cosines(x)
        value = torch.zeros_like(cosine)
        for factor in reversed(self.series):  # Horner
            value = value * cosine + factor
        return value
