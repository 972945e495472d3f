"""MagFace (arXiv:2103.06627): an angle that grows with the embedding's norm, which is held by a regulariser.

    a_i = clip(|f_i|, l_a, u_a),   m_i = l_m + (u_m - l_m) (a_i - l_a) / (u_a - l_a)
    phi_i = cos(theta_i + m_i),   loss = cross-entropy + lambda_g mean(a_i / u_a^2 + 1 / a_i)     (equations 2 to 4)

The gradient goes to the norm as well, within [l_a, u_a]. `easy_margin`, as in the authors' code: phi_i = cos(theta_i)
where that is not positive. Differs with easy_margin = false: past pi the margin goes on as ArcFace's does here
(functions.py), theirs on a line.
"""

from __future__ import annotations

from partialkd.config import MagFaceMarginConfig
from partialkd.methods.margins.base import Margin, MarginInputs, Moved
from partialkd.methods.margins.functions import arc_margin


class MagFaceMargin(Margin):
    """Reports the mean norm, the mean margin and the regulariser without its weight."""

    def __init__(self, config: MagFaceMarginConfig) -> None:
        self.config = config
        self.slope = (config.u_margin - config.l_margin) / (config.u_a - config.l_a)

    def moved(self, inputs: MarginInputs) -> Moved:
        of, cosine = self.config, inputs.found.target
        norms = inputs.student.norm(dim=1).to(cosine.dtype).clamp(of.l_a, of.u_a)
        margin = of.l_margin + self.slope * (norms - of.l_a)
        target = arc_margin(cosine, margin)
        if of.easy_margin:
            target = target.where(cosine > 0, cosine)
        held = (norms / of.u_a**2 + 1 / norms).mean()
        values = {"norm": norms.mean(), "margin": margin.mean(), "regulariser": held}
        return Moved(target, of.lambda_g * held, {name: value.detach() for name, value in values.items()})
