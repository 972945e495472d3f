"""Which rank owns which class: pure arithmetic on global class ids, no devices, no collectives.

Class ids are dealt out in contiguous ranges; when the number of classes is not divisible by the world size,
the early ranks own one more. A rank may own nothing (fewer classes than ranks).
"""

from __future__ import annotations

import torch
from torch import Tensor


def shard_of(num_classes: int, rank: int, world_size: int) -> range:
    """Class ids whose centres `rank` owns; early ranks take the remainder."""
    base, extra = divmod(num_classes, world_size)
    start = rank * base + min(rank, extra)
    return range(start, start + base + (rank < extra))


def local_rows(labels: Tensor, shard: range) -> tuple[Tensor, Tensor]:
    """labels (N,) int64 -> owned (N,) bool, row in the shard (N,) int64 (0 where not owned)."""
    owned = (labels >= shard.start) & (labels < shard.stop)
    return owned, torch.where(owned, labels - shard.start, 0)
