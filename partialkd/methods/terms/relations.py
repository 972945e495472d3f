"""Relations between all images of a batch: (N, D) -> (N, N), with a finite gradient for images that are the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosines(x: Tensor) -> Tensor:
    """Cosines of all pairs; 0 with an embedding of zeros."""
    unit = F.normalize(x)
    return unit @ unit.T


def distances(x: Tensor) -> Tensor:
    """Euclidean distances of all pairs: exactly 0, with gradient 0, between equal embeddings.

    Computed from differences: by inner products, equal ones would be a rounding error apart.
    """
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def mean(values: Tensor) -> Tensor:
    """Mean () of any number of values (n,); 0 of none."""
    return values.sum() / max(1, len(values))
