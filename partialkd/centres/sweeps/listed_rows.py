"""List the rows that a step compares with, for kernels that take a list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from partialkd.centres.device_io import to_device
from partialkd.centres.row_filter import RowFilter
from partialkd.centres.sweeps.chunks import side_by_side

LISTED_AT_ONCE = 1 << 20  # rows


def kept_rows(kept: RowFilter) -> Iterator[Tensor | None]:
    """List the rows that the filter keeps, for kernels: (n,) int32 at a time, LISTED_AT_ONCE at most; None: all rows.

    Those of the batch that were not sampled come last. -1 stands where a row is not kept, so that the host knows n.
    """
    if kept.everything:
        if kept.count:
            yield None
        return
    for runs in side_by_side(kept.runs, LISTED_AT_ONCE):
        rows = _rows_of(runs, kept.positives.device)
        yield rows if kept.seen is None else rows.where(kept.holds(rows.long()), -1)
    if kept.sampled is not None:
        outside = kept.outside
        if len(outside.rows):
            yield outside.rows.to(torch.int32).where(outside.valid, -1)


def _rows_of(runs: Sequence[slice], device: torch.device) -> Tensor:
    """Every row of these runs (n,) int32, in order, without asking the device anything."""
    lengths = [run.stop - run.start for run in runs]
    shifts = [run.start - before for run, before in zip(runs, accumulate(lengths, initial=0), strict=False)]
    count = sum(lengths)
    each = to_device(shifts, device, torch.int32).repeat_interleave(to_device(lengths, device), output_size=count)
    return each.add_(torch.arange(count, dtype=torch.int32, device=device))
