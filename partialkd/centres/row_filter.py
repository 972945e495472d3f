"""Choose the rows that take part in a step: those sampled and seen, and the batch's own classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from partialkd.centres.device_io import to_device, without_gaps

COUNTED_AT_ONCE = 1 << 20  # rows


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
        """Ranges of the sampled rows, seen or not."""
        return [range(self.count)] if self.sampled is None else self.sampled

    @cached_property
    def outside(self) -> Listed:
        """Rows of the batch's classes that are not in `runs`."""
        return outside_of([self])

    def holds(self, rows: Tensor) -> Tensor:
        """Whether these rows (n,) take part -> (n,) bool."""
        kept = self.sampled_rows(rows)
        if self.seen is not None:
            kept &= self.seen[rows]
        return kept | self._own(rows)

    def keep(self, start: int, stop: int) -> Tensor:
        """Whether the rows start..stop take part -> (stop - start,) bool."""
        return self.holds(torch.arange(start, stop, device=self.positives.device))

    def place(self, rows: Tensor) -> Tensor:
        """Find where rows (n,) stand when all runs are laid side by side -> (n,), -1 outside of them."""
        if self.sampled is None:
            return rows
        if not self.sampled:
            return torch.full_like(rows, -1)
        edge = torch.bucketize(rows, self._edges, right=True)
        shift = self._shifts[(edge - 1).clamp_min_(0) // 2]
        return torch.where(edge % 2 == 1, rows - shift, -1)

    def counts(self) -> Tensor:
        """Count the rows that may be compared with, and those that are -> (2,) float64."""
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
        """Whether these rows (n,) are in `runs` -> (n,) bool."""
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
        """Number of rows that are left out before each run (runs,)."""
        lengths = accumulate((len(run) for run in self.runs), initial=0)
        shifts = [run.start - before for run, before in zip(self.runs, lengths, strict=False)]
        return to_device(shifts, self.positives.device)

    @cached_property
    def _edges(self) -> Tensor:
        return to_device([edge for run in self.runs for edge in (run.start, run.stop)], self.positives.device)


class Listed(NamedTuple):
    """Rows of a shard; on CUDA as many entries as there might be: the device is not asked how many there are."""

    rows: Tensor  # (n,) int64 ascending; entries that stand for no row name one nevertheless (of an empty shard row 0)
    valid: Tensor  # (n,) bool: entries that stand for a row, each row once: its first entry


def outside_of(filters: Sequence[RowFilter]) -> Listed:
    """List the rows of these batches' classes that are not in the runs, which are the same in all.

    A window may have grown from one filter to the next.
    """
    count = max(f.count for f in filters)
    rows = torch.cat([f.positives for f in filters])
    rows = torch.where((rows < 0) | filters[0].sampled_rows(rows), count, rows).sort().values
    valid = rows < count
    valid[1:] &= rows[1:] != rows[:-1]
    return Listed(*without_gaps(rows.clamp_max_(max(0, count - 1)), valid))


def one_for_all(rows: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Let one valid row stand for all that are not -> rows (n,), and the entry that each is taken from (n,).

    What is then written for rows is the same wherever one repeats. If none is valid the rows are arbitrary.
    """
    entry = torch.where(valid, torch.arange(len(rows), device=rows.device), valid.int().argmax())
    return rows[entry], entry
