"""Noise on the logits of a teacher: z' (1 + sigma xi), xi ~ N(0, 1) for each image and class, of a share of the images.

Shapes: records (b,) int64 -> keys (b,) int64; keys and class ids that broadcast -> factors, float32.
Source: Sau and Balasubramanian, "Deep Model Compression: Distilling Knowledge from Noisy Teachers", arXiv:1610.09650,
equation 2 and section 3.2.
A hash of (seed, optimiser step, record, class id) is all a factor depends on: it is made where the logit is, the same
on every rank, for any cut into shards, chunks and micro-steps, and again after a resume. Two 32-bit words give one
number by Box and Muller's rule, so that |xi| < FARTHEST. Some ten operations on integers for each logit, and memory
for four more matrices of a chunk, of eight bytes per number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from partialkd.counter_random import hash_words, mix_word

FARTHEST = math.sqrt(-2 * math.log(2.0**-33)) + 1e-3
NO_NOISE = -1  # the key of an image that gets none
_SALT, _CHOSEN, _FIRST, _SECOND = 0x6C6F6769, 0x63686F73, 0x9E3779B9, 0x7F4A7C15
_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class LogitNoise:
    """Perturbs about `share` of the images by `sigma`, as a part of each logit."""

    sigma: float
    share: float
    seed: int

    @property
    def most(self) -> float:
        """A bound of |factor|."""
        return 1 + self.sigma * FARTHEST

    def keys(self, records: Tensor, step: int) -> Tensor:
        """Make a word of each of the records (b,) in this optimiser step; NO_NOISE for those that get none."""
        words = hash_words(records, self.seed ^ _SALT, step)
        return torch.where(mix_word(words ^ _CHOSEN) < self.share * 2.0**32, words, NO_NOISE)

    def factors(self, keys: Tensor, classes: Tensor) -> Tensor:
        """Make the factors of logits of images with these keys and of these class ids, which broadcast."""
        ids = mix_word(classes & _WORD)
        words = mix_word((keys & _WORD) ^ ids)
        radius = (mix_word(words ^ _FIRST) + 0.5).float().mul_(2.0**-32).log_().mul_(-2).sqrt_()
        turn = mix_word(((words + _SECOND) & _WORD) ^ ids).float().mul_(2 * math.pi * 2.0**-32)
        return radius.mul_(turn.cos_()).mul_(self.sigma).masked_fill_(keys == NO_NOISE, 0).add_(1)
