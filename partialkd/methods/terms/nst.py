"""Neuron selectivity transfer: the channels of both networks as samples of two distributions, compared by kernels.

Each channel is a vector (H W,) of length one. Value: mean over images of the squared maximum mean discrepancy,
mean k(t, t') + mean k(s, s') - 2 mean k(t, s), each over all pairs of channels, summed over the pairs of taps. Kernels:
polynomial (x.y)^2, Gaussian exp(-|x - y|^2 / (2 v)), linear x.y. Gradient: to the student.
Source: arXiv:1707.01219, equations 4 to 9 (c = 0, d = 2). v is the mean of |t - s|^2 over the pairs of one image,
without gradient: inferred, the paper says the mean squared distance of the pairs. Differs: maps of two sizes are
averaged down to the smaller. Maps of one pixel differ by their sign only, which the polynomial kernel does not see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from partialkd.methods.terms.base import MapPair, Term, TermInputs, TermSetting
from partialkd.methods.terms.maps import alike

if TYPE_CHECKING:
    from partialkd.config.terms import NstTermConfig

Kernel = Callable[[Tensor, Tensor], Tensor]  # cosines (b, m, n), v (b, 1, 1) -> (b, m, n)
KERNELS: dict[str, Kernel] = {
    "linear": lambda cosines, _: cosines,
    "polynomial": lambda cosines, _: cosines.square(),
    "gaussian": lambda cosines, v: ((cosines - 1) / v).exp(),  # of vectors of length one: |x - y|^2 = 2 - 2 x.y
}


class NeuronSelectivity(Term):
    """Mean over this rank's images."""

    def __init__(self, config: NstTermConfig, setting: TermSetting) -> None:
        super().__init__(config, setting)
        self.kernel = KERNELS[config.kernel]

    def loss(self, inputs: TermInputs) -> Tensor:
        pairs = inputs.taps[self.config]
        return sum((discrepancy(pair, self.kernel) for pair in pairs), inputs.student.new_zeros(()))


def discrepancy(pair: MapPair, kernel: Kernel) -> Tensor:
    """Mean over images of the squared discrepancy: ()."""
    student, teacher = (F.normalize(maps.flatten(2), dim=2) for maps in alike(pair))  # (b, C, n)
    across = teacher @ student.mT
    v = (2 - 2 * across.detach()).mean((1, 2), keepdim=True).clamp_min(1e-12)
    mean = lambda cosines: kernel(cosines, v).mean((1, 2))
    return (mean(teacher @ teacher.mT) + mean(student @ student.mT) - 2 * mean(across)).mean()
