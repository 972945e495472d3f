"""Make the plans of training, and hint to the system which blocks of the files they come to next.

With `data.shuffle = "blocks"` the blocks of the group being read and, as it is worked through, those of the next
group are announced (`Source.readahead`) in the order of the epoch. Every block is asked for once per epoch, in one
run of neighbouring records, and should be in the page cache when a loader reads its records one by one.
Announcing changes nothing of what is read.
"""

from __future__ import annotations

import numpy as np

from partialkd.config import DataConfig
from partialkd.data.order.orders import BlockOrder, Order
from partialkd.data.order.plan import BatchCut, TrainingPlan
from partialkd.data.sources.source import Source


def make_plan(data: DataConfig, source: Source, order: Order, cut: BatchCut, seed: int) -> TrainingPlan:
    """Make the plan of an order; one that reads ahead where the order has blocks."""
    if isinstance(order, BlockOrder):
        return ReadingAhead(source, order, cut, seed, data.flip, data.grey)
    return TrainingPlan(len(source), cut, seed, data.flip, data.grey, order)


class ReadingAhead(TrainingPlan):
    """Announces blocks as `indices` comes to them."""

    def __init__(self, source: Source, order: BlockOrder, cut: BatchCut, seed: int, flip: bool, grey: float) -> None:
        super().__init__(len(source), cut, seed, flip, grey, order)
        self._source, self._blocks = source, order
        self._epoch = self._announced = -1  # blocks of this epoch, up to this one

    def indices(self, epoch: int, micro_step: int) -> np.ndarray:
        starts, ends = self._blocks.blocks(epoch)
        batch, group = self.micro_batch, self._blocks.group
        span = np.array([micro_step * batch, (micro_step + 1) * batch - 1])
        now, until = np.searchsorted(ends, span, side="right").tolist()  # the blocks there, were blocks not mixed
        first = now // group * group
        if self._epoch != epoch:
            self._epoch, self._announced = epoch, first
        last = min(max(until + group, (until // group + 1) * group), len(ends))
        for block in range(max(self._announced, first), last):
            before = int(ends[block - 1]) if block else 0
            self._source.readahead(int(starts[block]), int(starts[block]) + int(ends[block]) - before)
        self._announced = max(self._announced, last)
        return super().indices(epoch, micro_step)
