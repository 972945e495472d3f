"""Maps of two networks side by side."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from partialkd.methods.terms.base import MapPair


def same_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Bring maps (b, C, H, W) and (b, C', H', W') to the smaller height and width of both, by means over windows."""
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    one, other = (x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (first, second))
    return one, other


def alike(pair: MapPair) -> tuple[Tensor, Tensor]:
    """Bring the maps of a pair to one size, the teacher's in the student's precision."""
    return same_size(pair.student, pair.teacher.to(pair.student.dtype))
