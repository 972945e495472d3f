"""Bend the logits of negatives within a sweep: CurricularFace (arXiv:2004.00288, equation 7).

A negative whose cosine is above the sample's threshold T_i, which is its target's logit with the margin, is hard:

    f(c_ij) = c_ij (t + c_ij) where c_ij > T_i, else c_ij;   df/dc_ij = t + 2 c_ij, else 1.

T_i and t carry no gradient. With |t| <= 1 the bent cosine lies in [-1, 1 + |t|]; the constant that keeps exp within
float32 grows with |t| (`offset_with`). f jumps at T_i: of cosines that differ by rounding one may be hard and the other
not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_SCALE = 64.0  # exp(+-64) and sums of 1e8 such terms fit into float32


@dataclass(frozen=True)
class Bend:
    """What negatives of the global batch are bent by, in the type of the embeddings."""

    threshold: Tensor  # (N,) T
    strength: Tensor  # () t, in [-1, 1]

    def bend(self, logits: Tensor, scale: float) -> Tensor:
        """Bend scale * cosine (r, N) in place -> df/dc (r, N)."""
        easy = logits <= self.threshold * scale
        factor = torch.add(self.strength, logits, alpha=1 / scale).masked_fill_(easy, 1)  # t + c
        logits.mul_(factor)
        return factor.lerp_(self.strength, -1).masked_fill_(easy, 1)  # twice it less t

    def bent(self, cosine: Tensor) -> Tensor:
        """f of cosines (N, R), to be differentiated by autograd."""
        return torch.where(cosine > self.threshold[:, None], cosine * (self.strength + cosine), cosine)


def offset_of(scale: float) -> float:
    """The constant subtracted from every logit before exp: largest logit - 64, at least 0."""
    return max(0.0, scale - LARGEST_SCALE)


def offset_with(scale: float, bend: Bend | None) -> float | Tensor:
    """`offset_of`, or with a bend that of the largest bent logit, scale * (1 + |t|), ()."""
    if bend is None:
        return offset_of(scale)
    return (scale * (1 + bend.strength.abs()) - LARGEST_SCALE).clamp_min(0)
