"""Which rows take part in a step: all of them, or a sample that holds every class of the global batch.

Class ids are cut into blocks of neighbours, and T blocks in a row form a group. A step takes m blocks of every group,
m / T being the fraction nearest to the sample rate; a cycle of T steps takes every block exactly m times, in an
order that each group draws anew for each cycle (partialkd.counter_random). So the choice is a pure function of (seed,
step, class id): world size, chunks and restarts do not change it, nothing is drawn or kept for C classes, every rank
takes its fair share at every step, and the rows taken lie in a few slices that are used in place.

Neighbours are in or out together. Where neighbouring class ids are alike (a data set sorted by origin) a step's
sample varies more than one of single rows would; over a cycle all classes count the same. Blocks are as small
as is cheap: `block_rows`.

Differs from Partial FC (arXiv:2203.15565), which draws rows at random on every rank and sorts C numbers to do so.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from partialkd.config import sampled_share
from partialkd.counter_random import hash64, permute

LARGEST_BLOCK, USUAL_BLOCK = 4096, 256
_LABEL = 0xB10C  # keeps these permutations apart from others of the same seed


@dataclass(frozen=True)
class Sampling:
    """The walk over the blocks, the same on all ranks."""

    num_classes: int
    rate: float
    seed: int

    @cached_property
    def fraction(self) -> Fraction:
        """m / T."""
        return sampled_share(self.rate)

    @cached_property
    def block(self) -> int:
        """Class ids in a block."""
        return block_rows(self.num_classes, self.rate)

    def runs(self, shard: range, step: int) -> list[range]:
        """The rows of `shard` that this step takes: ascending, apart from each other."""
        blocks = self._blocks(shard, step)
        start = np.maximum(blocks * self.block, shard.start) - shard.start
        stop = np.minimum((blocks + 1) * self.block, shard.stop) - shard.start
        start, stop = start[start < stop], stop[start < stop]
        first = np.flatnonzero(np.concatenate([[True], start[1:] > stop[:-1]])) if len(start) else start
        ends = np.concatenate([stop[first[1:] - 1], stop[-1:]])
        return [range(a, b) for a, b in zip(start[first].tolist(), ends.tolist(), strict=True)]

    def most_rows(self, shard: range) -> int:
        """No step takes more of this shard's rows."""
        group_rows = self.fraction.denominator * self.block
        groups = -(-shard.stop // group_rows) - shard.start // group_rows
        return min(len(shard), groups * self.fraction.numerator * self.block)

    def _blocks(self, shard: range, step: int) -> np.ndarray:
        """Numbers of the blocks taken (n,) int64, ascending, from all groups that reach into the shard."""
        taken, length = self.fraction.numerator, self.fraction.denominator
        cycle, turn = divmod(step, length)
        group_rows = length * self.block
        groups = np.arange(shard.start // group_rows, -(-shard.stop // group_rows))
        keys = hash64(self.seed, _LABEL, cycle, groups)
        slots = [permute(length, keys, np.full(len(groups), (turn * taken + i) % length)) for i in range(taken)]
        return np.sort(np.concatenate([groups * length + slot for slot in slots]))


def block_rows(num_classes: int, rate: float) -> int:
    """64 blocks a step, not over 4096 rows each; where that would be under 256 rows, 8 to 64 blocks."""
    rows = int(num_classes * rate)
    return max(1, min(LARGEST_BLOCK, max(rows // 64, min(USUAL_BLOCK, rows // 8))))
