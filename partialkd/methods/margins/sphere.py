"""SphereFace (arXiv:1704.08063): a multiplied angle.

    phi = psi(theta) = (-1)^k cos(m theta) - 2k,   k = floor(m theta / pi)                               (equation 6)

As in SphereFace-R (arXiv:2109.05565, its hard normalisation of features with the margin of its version "v0"):
embeddings are normalised, so the logits are s psi and s cos where SphereFace's are |f| psi and |f| cos, and m need not
be whole. `gradient = "straight_through"` is its characteristic gradient detachment: the value of psi, the gradient of
the cosine. Differs: its loss is divided by s and weighted; weights of the loss are left to the learning rate here.

With base or lambda_min above 0 the target is annealed as in SphereFace's code,

    phi = (lambda cos(theta) + psi(theta)) / (1 + lambda),   lambda = max(lambda_min, base (1 + gamma step)^-power),

steps counted from 1.
"""

from __future__ import annotations

from partialkd.config import SphereMarginConfig
from partialkd.methods.margins.base import Margin, MarginInputs, Moved
from partialkd.methods.margins.functions import combined_margin, straight_through


class SphereMargin(Margin):
    """Reports lambda where there is one."""

    def __init__(self, config: SphereMarginConfig) -> None:
        self.config = config

    def moved(self, inputs: MarginInputs) -> Moved:
        cosine, share = inputs.found.target, self.share_of_cosine(inputs.centres.steps)
        target = combined_margin(cosine, self.config.m, 0.0, 0.0)
        values = {}
        if share:
            target = (share * cosine + target) / (1 + share)
            values["lambda"] = cosine.new_tensor(share)
        if self.config.gradient == "straight_through":
            target = straight_through(cosine, target)
        return Moved(target, values=values)

    def share_of_cosine(self, step: int) -> float:
        """Compute lambda in the step after `step` of them."""
        of = self.config
        return max(of.lambda_min, of.base * (1 + of.gamma * (step + 1)) ** -of.power)
