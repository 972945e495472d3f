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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from partialkd.centres.answers import sent, without_gaps
from partialkd.config import sampled_share
from partialkd.counter_random import hash64, permute

LARGEST_BLOCK, USUAL_BLOCK = 4096, 256
COUNTED_AT_ONCE = 1 << 20  # rows
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


class Listed(NamedTuple):
    """Rows of a shard; on CUDA as many entries as there might be: the device is not asked how many there are."""

    rows: Tensor  # (n,) int64 ascending; entries that stand for no row name one nevertheless (of an empty shard row 0)
    valid: Tensor  # (n,) bool: entries that stand for a row, each row once: its first entry


@dataclass(frozen=True)
class RowFilter:
    """The rows of one shard that are compared with in one step: those sampled and seen, and the batch's own."""

    count: int  # rows of the shard
    positives: Tensor  # (P,) rows of this shard in the global batch, any order, repeats allowed; -1: not of this shard
    sampled: Sequence[range] | None = None  # None: all
    seen: Tensor | None = None  # (R,) bool: only these may be negatives
    elsewhere: Callable[[], int] = lambda: 0  # rows beside all of these that may be compared with

    @property
    def everything(self) -> bool:
        return self.sampled is None and self.seen is None

    @property
    def runs(self) -> Sequence[range]:
        """Where the sampled rows lie, seen or not."""
        return [range(self.count)] if self.sampled is None else self.sampled

    @cached_property
    def outside(self) -> Listed:
        """Rows of the batch's classes that are not in `runs`."""
        return outside_of([self])

    def holds(self, rows: Tensor) -> Tensor:
        """rows (n,) int64 -> (n,) bool."""
        kept = self.sampled_rows(rows)
        if self.seen is not None:
            kept &= self.seen[rows]
        return kept | self._own(rows)

    def keep(self, start: int, stop: int) -> Tensor:
        """Rows start..stop -> (stop - start,) bool."""
        return self.holds(torch.arange(start, stop, device=self.positives.device))

    def place(self, rows: Tensor) -> Tensor:
        """rows (n,) -> where they stand when all runs are laid side by side (n,), -1 outside of them."""
        if self.sampled is None:
            return rows
        if not self.sampled:
            return torch.full_like(rows, -1)
        edge = torch.bucketize(rows, self._edges, right=True)
        shift = self._shifts[(edge - 1).clamp_min_(0) // 2]
        return torch.where(edge % 2 == 1, rows - shift, -1)

    def counts(self) -> Tensor:
        """(2,) float64: rows that may be compared with, and those that are."""
        if self.seen is None:
            able = self.positives.new_full((), self.count)
            used = self.outside.valid.sum() + sum(len(run) for run in self.runs)
        else:
            able = used = self.positives.new_zeros(())
            for start in range(0, self.count, COUNTED_AT_ONCE):
                rows = torch.arange(start, min(start + COUNTED_AT_ONCE, self.count), device=self.positives.device)
                able = able + (self.seen[start : start + len(rows)] | self._own(rows)).sum()
                used = used + self.holds(rows).sum()
        return torch.stack([able + self.elsewhere(), used]).double()

    def sampled_rows(self, rows: Tensor) -> Tensor:
        """rows (n,) int64 -> (n,) bool: whether they are in `runs`."""
        if self.sampled is None:
            return torch.ones_like(rows, dtype=torch.bool)
        return torch.bucketize(rows, self._edges, right=True) % 2 == 1

    def _own(self, rows: Tensor) -> Tensor:
        """Whether they are in `positives`. By a search: torch.isin asks CUDA for a number."""
        if not len(self.positives):
            return torch.zeros_like(rows, dtype=torch.bool)
        at = torch.searchsorted(self._ordered, rows).clamp_max_(len(self._ordered) - 1)
        return self._ordered[at] == rows

    @cached_property
    def _ordered(self) -> Tensor:
        return self.positives.sort().values

    @cached_property
    def _shifts(self) -> Tensor:
        """(runs,) rows that are left out before each run."""
        lengths = accumulate((len(run) for run in self.runs), initial=0)
        shifts = [run.start - before for run, before in zip(self.runs, lengths, strict=False)]
        return sent(shifts, self.positives.device)

    @cached_property
    def _edges(self) -> Tensor:
        return sent([edge for run in self.runs for edge in (run.start, run.stop)], self.positives.device)


def outside_of(filters: Sequence[RowFilter]) -> Listed:
    """Rows of these batches' classes that are not in the runs, which are the same in all.

    A window may have grown from one filter to the next.
    """
    count = max(f.count for f in filters)
    rows = torch.cat([f.positives for f in filters])
    rows = torch.where((rows < 0) | filters[0].sampled_rows(rows), count, rows).sort().values
    valid = rows < count
    valid[1:] &= rows[1:] != rows[:-1]
    return Listed(*without_gaps(rows.clamp_max_(max(0, count - 1)), valid))


def one_for_all(rows: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """-> rows (n,) where one that is valid stands for all that are not, and the entry that each is taken from (n,).

    What is then written for rows is the same wherever one repeats. If none is valid the rows are arbitrary.
    """
    entry = torch.where(valid, torch.arange(len(rows), device=rows.device), valid.int().argmax())
    return rows[entry], entry
