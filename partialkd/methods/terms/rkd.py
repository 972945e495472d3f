"""Relational knowledge distillation (RKD, CVPR 2019, arXiv:1904.05068): distances and angles, Huber loss.

    distance: psi_ij = |f_i - f_j| / mu, mu the mean distance of two different images of the batch;
        mean over all (i, j) of l(psi^s_ij - psi^t_ij)
    angle: psi_ijk = <e_ij, e_ik>, e_ij = (f_j - f_i) / |f_j - f_i|;
        mean over all (i, j, k) of l(psi^s_ijk - psi^t_ijk)
    l(d) = d^2 / 2 for |d| <= 1, |d| - 1/2 otherwise

Embeddings as the networks give them; only the directions between them and the ratios of their distances count. Means
over all N^2 and N^3 tuples, those with an image twice too, and weights of 25 and 50, as in the authors' code
(lenscloth/RKD at 21fae20, metric/loss.py) and in that of EKD for faces (Tencent/TFace at 82c9cbb, tasks/ekd); the paper
sums. Differs: between equal embeddings distance and direction are zeros with gradient 0; theirs has distances of 1e-6
there, and directions whose slope is 1e12.

Angles are made of inner products, <f_j - f_i, f_k - f_i> = G_jk - G_ij - G_ik + G_ii, block by block of i, with their
slopes at once: no (N, N, D) nor (N, N, N) tensor. The work is N^3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from partialkd.config.terms import RkdTermConfig
from partialkd.methods.terms.base import Term, TermInputs, TermSetting
from partialkd.methods.terms.relations import distances

ENTRIES = 1 << 22  # angles worked out at once


class Rkd(Term):
    """Weighted sum of both losses over the global batch."""

    def __init__(self, config: RkdTermConfig, setting: TermSetting) -> None:
        super().__init__(config, setting)
        self.parts = {distance_loss: config.distance_weight, angle_loss: config.angle_weight}

    def loss(self, inputs: TermInputs) -> Tensor:
        batch = inputs.gathered
        assert batch.teacher is not None
        student, teacher = batch.student, batch.teacher
        return torch.stack([weight * part(student, teacher) for part, weight in self.parts.items() if weight]).sum()


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """(N, D), (N, D of the teacher) -> ()."""
    return F.smooth_l1_loss(relative_distances(student), relative_distances(teacher))


def relative_distances(x: Tensor) -> Tensor:
    """(N, D) -> (N, N), in units of their mean."""
    apart = distances(x)
    pairs = max(1, len(x) * (len(x) - 1))
    return apart / (apart.sum() / pairs).clamp_min(torch.finfo(x.dtype).tiny)


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """(N, D), (N, D of the teacher) -> ()."""
    n, parts, of_teacher = len(student), geometry(student), geometry(teacher)
    leaves = [part.detach().requires_grad_() for part in parts]
    total, slopes = torch.zeros_like(student[0, 0]), [torch.zeros_like(part) for part in leaves]
    rows = max(1, ENTRIES // n**2)
    for start in range(0, n, rows):
        value = _angles_of(leaves, of_teacher, slice(start, start + rows))
        total += value.detach()
        for slope, more in zip(slopes, torch.autograd.grad(value, leaves), strict=True):
            slope += more
    inner = torch.stack([(part * slope).sum() for part, slope in zip(parts, slopes, strict=True)]).sum()
    return (total + inner - inner.detach()) / n**3  # the value of `total`, with these slopes


def geometry(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> inner products (N, N), one over the distances (N, N), 0 between equal embeddings.

    The products are those of embeddings around their mean, which changes no angle and rounds less.
    """
    centred = x - x.detach().mean(0)
    apart = distances(x)
    there = apart > 0
    return centred @ centred.T, torch.where(there, 1 / torch.where(there, apart, 1), 0)


def _angles_of(student: Sequence[Tensor], teacher: Sequence[Tensor], vertices: slice) -> Tensor:
    """Sum the losses of all angles at these vertices."""
    return F.smooth_l1_loss(_angles(student, vertices), _angles(teacher, vertices), reduction="sum")


def _angles(parts: Sequence[Tensor], rows: slice) -> Tensor:
    """Cosines (r, N, N) of the angles at these vertices."""
    inner, inverse = parts
    own, squares = inner[rows], inner.diagonal()[rows]
    products = inner - own[:, :, None] - own[:, None, :] + squares[:, None, None]
    return products * inverse[rows, :, None] * inverse[rows, None, :]
