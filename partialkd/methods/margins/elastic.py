"""ElasticFace (arXiv:2109.09416): a margin per sample and step, drawn from a normal distribution.

    m_i ~ N(m, std),   phi_i = cos(theta_i + m_i)  (Arc)  or  cos(theta_i) - m_i  (Cos)             (equations 4 and 5)

A draw is a function of (seed, step, place of the sample in the global batch) alone: the same on any number of ranks,
however the batch is cut into micro-steps, and after a resume.

`plus`, ElasticFace+: the margins drawn for the global batch are dealt out anew, the larger the lower the cosine. That
is the paper's intent. Differs from the authors' code, which orders them by the permutation that sorts the cosines where
its inverse is meant, so that they come in no order; and orders those of each device by themselves.
Differs too past pi, where their cosine rises again (functions.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from partialkd.centres.device_io import to_device
from partialkd.config import Elastic, ElasticArcMarginConfig, ElasticCosMarginConfig
from partialkd.counter_random import uniform
from partialkd.methods.margins.base import Margin, MarginInputs, Moved
from partialkd.methods.margins.functions import arc_margin, cos_margin

Phi = Callable[[Tensor, Tensor], Tensor]  # cosine (b,), margin (b,) -> (b,)
_SALT = 0xE1A5  # keeps these draws apart from others of the same seed
_LEAST = 2.0**-53


class ElasticMargin(Margin):
    """Reports the mean margin drawn."""

    def __init__(self, config: Elastic, mean: float, phi: Phi) -> None:
        self.config, self.mean, self.phi = config, mean, phi

    def moved(self, inputs: MarginInputs) -> Moved:
        margin = (self._dealt if self.config.plus else self._drawn)(inputs)
        return Moved(self.phi(inputs.found.target, margin), values={"margin": margin.mean()})

    def _drawn(self, inputs: MarginInputs) -> Tensor:
        first = inputs.found.first
        return self._draw(inputs, range(first, first + len(inputs.student)))

    def _dealt(self, inputs: MarginInputs) -> Tensor:
        """Deal the global batch's margins out by cosine -> those of this rank's samples."""
        world, count = inputs.centres.world, len(inputs.student)
        cosines = world.all_gather(inputs.found.target.detach())
        drawn = self._draw(inputs, range(len(cosines))).sort().values
        order = cosines.sort(descending=True, stable=True).indices
        dealt = torch.empty_like(drawn).scatter_(0, order, drawn)
        return dealt[world.rank * count :][:count]

    def _draw(self, inputs: MarginInputs, places: range) -> Tensor:
        cosine, centres = inputs.found.target, inputs.centres
        shares = uniform(centres.seed, _SALT, centres.steps, np.array(places, dtype=np.int64))
        normal = torch.special.ndtri(to_device(shares.clip(_LEAST, 1 - _LEAST), cosine.device, torch.float64))
        return (self.mean + self.config.std * normal).to(cosine.dtype)


def elastic_arc(config: ElasticArcMarginConfig) -> ElasticMargin:
    """ElasticFace-Arc."""
    return ElasticMargin(config, config.m, arc_margin)


def elastic_cos(config: ElasticCosMarginConfig) -> ElasticMargin:
    """ElasticFace-Cos."""
    return ElasticMargin(config, config.m, cos_margin)
