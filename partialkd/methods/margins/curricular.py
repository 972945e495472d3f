"""CurricularFace (arXiv:2004.00288): ArcFace's margin, and negatives that weigh more the further training is.

    phi_i = cos(theta_i + m);   the cosine of negative j becomes c_ij (t + c_ij) where c_ij > phi_i     (equations 6, 7)

t: moving mean of the target cosines (equation 8; a share of t_alpha of the batch), 0 at first, without gradient; it
takes in the batch before it is used, as in the authors' code. The bend is made within the sweep over the centres
(partialkd.centres.sweeps.bend); the target cosines travel before it.

Differs from the authors' code: the mean is over the global batch, theirs over each device's; past pi the margin goes on
as ArcFace's does here (functions.py), theirs on a line, and a target there is compared with at that value.
"""

from __future__ import annotations

from torch import Tensor

from partialkd.centres.sweeps.bend import Bend
from partialkd.config import CurricularMarginConfig
from partialkd.methods.margins.base import MarginInputs, Moved, MovingMargin
from partialkd.methods.margins.functions import arc_margin


class CurricularMargin(MovingMargin):
    """Reports t."""

    def __init__(self, config: CurricularMarginConfig) -> None:
        super().__init__([0.0], config.t_alpha)
        self.config = config

    def bending(self, cosines: Tensor) -> Bend:
        """Target cosines of the global batch (N,) -> how its negatives are bent."""
        (strength,) = self.follow(cosines.nan_to_num(0.0).mean()[None])
        return Bend(arc_margin(cosines, self.config.m), strength)

    def moved(self, inputs: MarginInputs) -> Moved:
        target = inputs.found.target
        return Moved(arc_margin(target, self.config.m), values={"t": self._now.to(target.device)[0]})
