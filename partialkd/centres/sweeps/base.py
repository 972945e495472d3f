"""What a backend of the sweep owes the engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from partialkd.centres.row_filter import RowFilter, one_for_all
from partialkd.centres.row_optimizers import RowOptimizer
from partialkd.centres.store import CentreStore

LARGEST_SCALE = 64.0  # exp(+-64) and sums of 1e8 such terms fit into float32


@dataclass(frozen=True)
class Queries:
    """The global batch of one micro-step, as the owner of one shard sees it."""

    embeddings: Tensor  # (N, D) unit length
    owned: Tensor  # (N,) bool: the sample's class is in this shard
    row: Tensor  # (N,) int64 row of the sample's class, 0 where not owned
    filter: RowFilter  # the rows compared with

    @cached_property
    def place(self) -> Tensor:
        """(N,) int64: where the sample's class stands among the sampled rows, -1 where it does not."""
        return torch.where(self.owned, self.filter.place(self.row), -1)

    @cached_property
    def number(self) -> Tensor:
        """(N,) int64: 0 to N - 1"""
        return torch.arange(len(self.row), device=self.row.device)

    @cached_property
    def entry(self) -> Tensor:
        """(N,) int64: where the sample's own class stands in the logits of all sampled rows; negative: not in them."""
        return self.place * len(self.row) + self.number


class Sweep(Protocol):
    """What the engine asks of a backend. `batches`: (queries, dL/dc_ij / p_ij (N,), dL/dc_iy (N,)) a micro-step."""

    def sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        """-> O (N, D), Z (N,) of this shard."""

    def row_gradients(
        self, store: CentreStore, batches: Sequence[tuple[Queries, Tensor, Tensor]]
    ) -> Iterator[RowGradient]:
        """Piece by piece; the rows may be changed before the next piece is asked for."""

    def move(
        self,
        store: CentreStore,
        batches: Sequence[tuple[Queries, Tensor, Tensor]],
        optimizer: RowOptimizer,
        lr: float,
    ) -> None:
        """Move trainable rows by their gradients, piece by piece."""
        for piece in self.row_gradients(store, batches):
            _move_rows(store, piece, optimizer, lr)
            del piece  # or its memory would be there while the next is made


class RowGradient(NamedTuple):
    """Of some rows; of a list, those that are not valid are to be left alone."""

    rows: slice | Tensor  # (r,) int64
    gradient: Tensor  # (r, D) dL/du; its memory may be reused
    valid: Tensor | None = None  # (r,) bool; None: all


def _move_rows(store: CentreStore, piece: RowGradient, optimizer: RowOptimizer, lr: float) -> None:
    if piece.valid is None:
        optimizer.step(store, piece.rows, piece.gradient, lr)
        return
    assert isinstance(piece.rows, Tensor)
    rows, entry = one_for_all(piece.rows, piece.valid)
    with store.only_if(piece.valid.any(), rows):
        optimizer.step(store, rows, piece.gradient[entry], lr)


def offset_of(scale: float) -> float:
    """The constant subtracted from every logit before exp."""
    return max(0.0, scale - LARGEST_SCALE)
