"""Round centres and moments to fewer bits: to nearest, or stochastically, and then the same on any ranks.

Stochastic rounding goes up or down with the probability that makes the expected value the value itself, so that steps
far smaller than the spacing of the numbers add up instead of being lost. Its random bits are a hash of (seed, step,
part, class id, column, purpose): not of the rank, the world size, the device or the order of rows, and a step that is
repeated after a resume draws the same ones.

bfloat16: float32 with its lower 16 bits rounded away; spacing 2^-8 to 2^-7 of the number. NaN and infinity stay.
int8: a row is q * quantum with q in [-127, 127], quantum = max |row| / 127, so nothing is clipped and the largest
number of the row is exact. Rows that are not finite give lengths that are not finite, which is where they are looked
for.
Source: stochastic rounding as of Gupta et al., arXiv:1502.02551, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partialkd.counter_random import hash_words, mix_word

LEVELS = 127  # of int8, each side of zero
SMALLEST = 1e-14  # of the quanta; a row that is shorter becomes zeros
_MIX = 0x7FEB352D


@dataclass(frozen=True)
class Draw:
    """The random bits of one moment of a run."""

    seed: int
    step: int  # optimiser steps taken before
    part: int = 0  # micro-step within the step

    def words(self, ids: Tensor, columns: int, purpose: int = 0) -> Tensor:
        """Draw words for class ids (n,) int64 -> (n, columns) int32, every bit of the upper 24 as good as random.

        The product of an odd word per row and one per column, mixed once more; int32 arithmetic wraps around.
        """
        key = mix_word(mix_word((self.seed + 0x51ED270B) & 0xFFFFFFFF) ^ mix_word(self.part * 16 + purpose + 1))
        rows = (hash_words(ids, key, self.step) | 1).to(torch.int32)
        column = mix_word(torch.arange(1, columns + 1, device=ids.device)) | 1
        words = rows[:, None] * column.to(torch.int32)
        words ^= (words >> 16) & 0xFFFF
        return words.mul_(_MIX)


def to_bfloat16(values: Tensor, words: Tensor | None = None) -> Tensor:
    """Round (n, m) to bfloat16, by the random words (n, m), which are used up, or to nearest."""
    if words is None:
        return values.to(torch.bfloat16)
    single = values.float()
    bits = words.bitwise_right_shift_(16).bitwise_and_(0xFFFF).add_(single.view(torch.int32))
    rounded = bits.bitwise_and_(-0x10000).view(torch.float32)
    return torch.where(single.isnan(), single, rounded).to(torch.bfloat16)


def to_int8(rows: Tensor, words: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Round (n, D) to q (n, D) int8 -> q, 1 / |q| (n,), the length |q| * quantum (n,); a row of zeros has length 0.

    Norms of q are exact in float32 (up to D = 1040), the same in any order of summation.
    """
    quantum = (torch.linalg.vector_norm(rows, torch.inf, dim=1) / LEVELS).clamp_min(SMALLEST)
    levels = rows / quantum[:, None]
    if words is None:
        levels.round_()
    else:
        levels.add_(((words >> 8) & 0xFFFFFF).to(levels.dtype), alpha=2.0**-24).floor_()
    levels.clamp_(-LEVELS, LEVELS)
    norm = levels.norm(dim=1)
    return levels.to(torch.int8), 1 / norm.clamp_min(1), quantum * norm
