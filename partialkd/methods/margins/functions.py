"""Margins, differentiable functions of the target cosine (b,), and the margin softmax that they belong to.

Only the target's logit carries a margin, so a margin is a function on (b,), outside the sweep
(docs/flows.md). Margins in radians. Gradients are the true derivatives unless a function is named
straight_through.

Sources: ArcFace, arXiv:1801.07698; CosFace, arXiv:1801.09414; SphereFace, arXiv:1704.08063 (the continuation).
Differs from arcface_torch: its margin is computed without gradient, so its slope is 1 (`straight_through`);
past pi it falls back to a line (or is left to rise again), here it continues as SphereFace does, which keeps
it continuous and falling in theta for every margin.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EDGE = 1e-6  # acos has an infinite slope at +-1


def arc_margin(cosine: Tensor, radians: float | Tensor) -> Tensor:
    """ArcFace: cos(theta + m); m one number, or one per sample (b,)."""
    return combined_margin(cosine, 1.0, radians, 0.0)


def cos_margin(cosine: Tensor, margin: float | Tensor) -> Tensor:
    """CosFace: cos(theta) - m; m one number, or one per sample (b,)."""
    return cosine - margin


def combined_margin(cosine: Tensor, m1: float, m2: float | Tensor, m3: float) -> Tensor:
    """cos(m1 * theta + m2) - m3, continued monotonically where m1 * theta + m2 > pi."""
    theta = cosine.clamp(EDGE - 1, 1 - EDGE).acos()
    return falling_cosine(m1 * theta + m2) - m3


def falling_cosine(angle: Tensor) -> Tensor:
    """cos(angle) on [0, pi], and on [k pi, (k + 1) pi] the piece (-1)^k cos(angle) - 2k: never rises."""
    turns = (angle.detach() / torch.pi).floor()
    return (1 - 2 * (turns % 2)) * angle.cos() - 2 * turns


def straight_through(cosine: Tensor, moved: Tensor) -> Tensor:
    """The value of `moved`, the gradient of `cosine`: what arcface_torch trains with."""
    return cosine + (moved - cosine).detach()


def margin_softmax(negative: Tensor, moved: Tensor, scale: float) -> Tensor:
    """Cross-entropy () of the target logit scale * moved (b,) against the negatives' log-sum-exp (b,)."""
    return F.softplus(negative - scale * moved).mean()
