"""Batches that terms are tried on: identities several times, and images that are the same to one network or both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

N, DIM, TEACHER_DIM = 12, 5, 7  # N: divides among 1, 2 and 3 ranks


@dataclass
class Batch:
    """One global batch, float64."""

    student: Tensor  # (N, D)
    teacher: Tensor  # (N, D of the teacher)
    labels: Tensor  # (N,) int64


def batches(count: int = 2, teacher_dim: int = TEACHER_DIM) -> list[Batch]:
    """Of consecutive steps."""
    return [_batch(seed, teacher_dim) for seed in range(count)]


def _batch(seed: int, teacher_dim: int) -> Batch:
    g = torch.Generator().manual_seed(70 + seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    labels = torch.tensor([4, 0, 0, 1, 4, 2, 0, 1, 5, 3, 1, 4])
    student, teacher = draw(N, DIM) + draw(6, DIM)[labels], draw(N, teacher_dim) + 2 * draw(6, teacher_dim)[labels]
    for one, other in ((1, 6), (5, 9)):  # of one identity; of two that have one image each
        student[other], teacher[other] = student[one], teacher[one]
    student[11] = student[4]  # to the student only
    return Batch(student, teacher, labels)
