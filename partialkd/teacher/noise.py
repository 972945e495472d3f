"""Noise on what a teacher says: one that is not always sure of itself, as a regulariser.

Of each batch about `share` of the embeddings (D,) are multiplied, number by number, with 1 + sigma z, z ~ N(0, 1).
Noise on logits instead: partialkd/centres/logit_noise.py.
Source: Sau and Balasubramanian, "Deep Model Compression: Distilling Knowledge from Noisy Teachers", arXiv:1610.09650,
equation 2 and section 3.2. Differs: there the logits are perturbed, here the embedding, of which any logit is a linear
function: a logit s <w, e> gets the noise s sigma <w * e, z>.
Seeded by (run.seed, optimiser step, record): the same for any number of ranks and micro-steps, after a resume, and
whether embeddings are kept or not. Drawn on the CPU, about 0.1 microseconds a number.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from partialkd.config import NoiseConfig
from partialkd.counter_random import hash64, uniform

CHOSEN, DRAWN = 0x6E6F6973, 0x656E6F69  # salts


class Noise:
    """Perturbs embeddings (b, D), those of some records of a step."""

    def __init__(self, config: NoiseConfig, seed: int) -> None:
        self.sigma, self.share, self.seed = config.sigma, config.share, seed

    def __call__(self, rows: Tensor, records: Tensor, step: int) -> Tensor:
        """rows (b, D), records (b,) int64 on the CPU -> (b, D)."""
        index = records.numpy()
        chosen = uniform(self.seed, CHOSEN, step, index) < self.share
        drawn = self._normal(index, rows.shape[1], step) * chosen[:, None]
        return rows * (1 + self.sigma * torch.from_numpy(drawn).to(rows))

    def _normal(self, index: np.ndarray, dim: int, step: int) -> np.ndarray:
        """Draw (b, dim) float32 from N(0, 1), by Box and Muller's rule from the halves of a hash."""
        bits = hash64(self.seed, DRAWN, step, index[:, None], np.arange(dim)[None])
        first = ((bits >> np.uint64(32)) + 0.5) * 2.0**-32  # in (0, 1)
        second = (bits & np.uint64(0xFFFFFFFF)) * 2.0**-32
        return (np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second)).astype(np.float32)
