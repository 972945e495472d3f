"""Attention transfer: where in the picture the maps of both networks are strong.

Q = sum over channels of A^2, as a vector (H W,) of length one for each image. Value: 1/2 of the mean over images of
|Q_s - Q_t|^2, summed over the pairs of taps. Gradient: to the student.
Source: arXiv:1612.03928, equation 2 with the activation-based F_sum^2. Differs: squared, as in the authors' code (the
paper prints the norm itself, whose gradient has no limit at 0), but summed over positions, of which that code takes the
mean; attention maps of two sizes are averaged down to the smaller, where the paper has them interpolated.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from partialkd.methods.terms.base import MapPair, Term, TermInputs
from partialkd.methods.terms.maps import same_size


class AttentionTransfer(Term):
    """Mean over this rank's images."""

    def loss(self, inputs: TermInputs) -> Tensor:
        return sum((difference(pair) for pair in inputs.taps[self.config]), inputs.student.new_zeros(()))


def difference(pair: MapPair) -> Tensor:
    """Half the mean squared distance of the attention maps: ()."""
    student, teacher = same_size(strength(pair.student), strength(pair.teacher.to(pair.student.dtype)))
    return (F.normalize(student.flatten(1)) - F.normalize(teacher.flatten(1))).square().sum(1).mean() / 2


def strength(maps: Tensor) -> Tensor:
    """(b, C, H, W) -> (b, 1, H, W): the sum of squares over channels."""
    return maps.square().sum(1, keepdim=True)
