"""AdaFace (arXiv:2204.00964): a margin by the norm of the embedding, which stands for the quality of the image.

    z_i = clip(h (|f_i| - mu) / sigma, -1, 1),   phi_i = cos(theta_i - m z_i) - (m + m z_i)    (equations 13 to 16)

mu, sigma: moving mean and standard deviation of the norms, which take in the batch (a share of t_alpha) before they are
used; they begin at 20 and 100. Norms, clipped to [0.001, 100], carry no gradient. As in the authors' code
cosines are clamped to +-0.999 and the angle to [0.001, pi - 0.001]; sigma has 0.001 added.

With `geometry` z_i is, before the clip, greater by geometry * relu(l - <f_s, f_t>) l, l = clip(<w_y, f_t>, 1e-6, 1)
with w_y before it moves: the margin is larger where the teacher is sure of the class and the student not where the
teacher is (the repository adadistill_with_adaface_loss).

Differs from the authors' code: mu and sigma are of the global batch (one all_gather of a number per sample), theirs of
each device's; negatives' cosines are not clamped to +-0.999. Differs from that repository: `geometry_warmup_steps` grow
by the step, theirs by the epoch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from partialkd.config import AdaFaceMarginConfig
from partialkd.methods.margins.base import MarginInputs, Moved, MovingMargin

EPS = 1e-3
START = 20.0, 100.0  # mu, sigma


class AdaFaceMargin(MovingMargin):
    """Reports the mean norm and the mean z."""

    def __init__(self, config: AdaFaceMarginConfig) -> None:
        super().__init__(START, config.t_alpha)
        self.config = config

    def moved(self, inputs: MarginInputs) -> Moved:
        cosine, m = inputs.found.target, self.config.m
        norms = inputs.student.detach().norm(dim=1).to(cosine.dtype).nan_to_num(0.0).clamp(EPS, 100)
        mean, deviation = self.follow(statistics(inputs.centres.world.all_gather(norms)))
        z = self.config.h * (norms - mean) / (deviation + EPS)
        if inputs.lag is not None:
            z = z + self._geometry(inputs.centres.steps) * inputs.lag
        z = z.clamp(-1, 1)
        theta = cosine.clamp(EPS - 1, 1 - EPS).acos()
        target = (theta - m * z).clamp(EPS, math.pi - EPS).cos() - (m + m * z)
        return Moved(target, values={"norm": norms.mean(), "margin_scaler": z.mean()})

    def _geometry(self, step: int) -> float:
        grown = min(1.0, step / self.config.geometry_warmup_steps) if self.config.geometry_warmup_steps else 1.0
        return self.config.geometry * grown


def statistics(norms: Tensor) -> Tensor:
    """Norms (N,) -> mean and standard deviation (2,); of a single one the deviation is 0."""
    return torch.stack([norms.mean(), norms.std(correction=min(1, len(norms) - 1))])
