"""FitNets: hints from maps inside the teacher.

Value: mean over images of 1/2 |r(h_s) - h_t|^2 / (C H W), summed over the pairs of taps; r is the trained adapter, a
1x1 convolution from the student's channels to the teacher's. Gradient: to the student and its adapters.
Source: arXiv:1412.6550, equation 3. Differs: divided by the number of elements, so that one weight suits any layer and
image size; maps of two sizes are averaged down to the smaller; hints all along the training, not in a phase before it;
one layer's 1x1 convolution, where the paper's is as large as the difference of the maps.
"""

from __future__ import annotations

from torch import Tensor

from partialkd.methods.terms.base import MapPair, Term, TermInputs
from partialkd.methods.terms.maps import alike


class FitNets(Term):
    """Mean over this rank's images."""

    def loss(self, inputs: TermInputs) -> Tensor:
        return sum((hint(pair) for pair in inputs.taps[self.config]), inputs.student.new_zeros(()))


def hint(pair: MapPair) -> Tensor:
    """Half the mean squared difference: ()."""
    student, teacher = alike(pair)
    return (student - teacher).square().mean() / 2
