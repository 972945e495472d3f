"""Say where the rows lie that a step reads and moves: in the store itself, or in a window of it (host_memory.py).

A micro-step enters, is filtered, and may move its own classes' rows; an optimiser step ends with `leave` or `undo`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from partialkd.centres.gathered import OwnRows
from partialkd.centres.row_filter import RowFilter
from partialkd.centres.sampling import Sampling
from partialkd.centres.store import CentreStore

Moved = tuple[Tensor, dict[str, Tensor]]  # rows, what the store held there


class RowMemory(Protocol):
    """Where rows lie, as the engine uses it."""

    store: CentreStore  # all rows of the shard; up to date after `settle`
    working: CentreStore  # what sweeps and optimisers act on in this micro-step
    device: torch.device  # where they do

    def enter(self, own: OwnRows, step: int) -> OwnRows:
        """Begin a micro-step: turn the samples' own rows of `store` into rows of `working`."""

    def moves(self, own: OwnRows, undoable: bool) -> None:
        """Take note that `look` is about to move these rows of `working`."""

    def filter(self, own: OwnRows, step: int) -> RowFilter:
        """Choose the rows of `working` that are compared with."""

    def leave(self, everything: bool) -> None:
        """End an optimiser step; `everything`: it moved all rows that were compared with."""

    def undo(self) -> None:
        """Put back what `look` has moved; instead of `leave`."""

    def settle(self) -> None:
        """Wait until `store` is what the last step made of it."""

    def forget(self) -> None:
        """Drop whatever was read of `store`, which is about to become another one."""


class RowsInStore(RowMemory):
    """Rows that are used where the store keeps them."""

    def __init__(self, store: CentreStore, sampling: Sampling | None) -> None:
        self.store = self.working = store
        self.device, self.sampling = store.device, sampling
        self._moved: list[Moved] = []

    def enter(self, own: OwnRows, step: int) -> OwnRows:
        return own

    def moves(self, own: OwnRows, undoable: bool) -> None:
        if undoable and len(self.store.shard):
            self._moved.append((own.row, self.store.kept(own.row)))

    def filter(self, own: OwnRows, step: int) -> RowFilter:
        seen = None if self.store.everything_seen else self.store.seen
        count = len(self.store.shard)
        if self.sampling is None and seen is None:
            return RowFilter(count, own.row[:0])
        sampled = self.sampling.runs(self.store.shard, step) if self.sampling else None
        return RowFilter(count, torch.where(own.owned, own.row, -1), sampled, seen)

    def leave(self, everything: bool) -> None:
        self._moved.clear()

    def undo(self) -> None:
        for rows, before in reversed(self._moved):
            self.store.put_back(rows, before)
        self._moved.clear()

    def settle(self) -> None:
        pass

    def forget(self) -> None:
        self._moved.clear()
