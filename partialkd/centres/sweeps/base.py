"""Say what a backend of the sweep owes the engine.

A sweep takes the embeddings of the global batch past every row of a shard that the step compares with. With u_j the
unit centres, x_i the unit embeddings and p_ij = exp(scale * <x_i, u_j> - offset), the first sweep of a step gives for
every sample

    Z_i = sum_{j != y_i} p_ij          (N,)
    O_i = sum_{j != y_i} p_ij * u_j    (N, D)

from which N_i = log Z_i + offset and dN_i/dx_i = scale * O_i / Z_i (docs/flows.md). Sums of chunks and of ranks are
added: |cosine| <= 1 bounds every term, so there is no maximum to keep. offset = max(0, scale - 64). For trainable
rows a second sweep computes p_ij again and turns it into gradients of the rows, which it moves piece by piece.

Where the queries have a `bend` (bend.py), f(<x_i, u_j>) stands in the place of the cosine in p_ij, and df/dc_ij times
p_ij in that of p_ij in O and in the rows' gradients.

A backend is a subclass of `Sweep` and a line in choose.BACKENDS (docs/extending.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from partialkd.centres.row_filter import RowFilter
from partialkd.centres.row_optimizers import RowOptimizer
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps.bend import LARGEST_SCALE, Bend, offset_of
from partialkd.centres.sweeps.products import Products
from partialkd.config import CentresConfig

__all__ = ["LARGEST_SCALE", "Bend", "MicroStep", "Queries", "RowGradient", "Sweep", "move_rows", "offset_of"]


@dataclass(frozen=True)
class Queries:
    """The global batch of one micro-step, as the owner of one shard sees it."""

    embeddings: Tensor  # (N, D) unit length
    owned: Tensor  # (N,) bool: the sample's class is in this shard
    row: Tensor  # (N,) int64 row of the sample's class, 0 where not owned
    filter: RowFilter  # the rows compared with
    bend: Bend | None = None  # of the negatives' cosines; None: as they are

    @cached_property
    def place(self) -> Tensor:
        """Place of each sample's class among the sampled rows (N,) int64, -1 where it is not there."""
        return torch.where(self.owned, self.filter.place(self.row), -1)

    @cached_property
    def number(self) -> Tensor:
        """Numbers of the samples, 0 to N - 1 (N,) int64."""
        return torch.arange(len(self.row), device=self.row.device)

    @cached_property
    def entry(self) -> Tensor:
        """Place of each sample's own class in the logits of all sampled rows (N,) int64; negative: not in them."""
        return self.place * len(self.row) + self.number


MicroStep = tuple[Queries, Tensor, Tensor]  # queries, dL/dc_ij / p_ij (N,), dL/dc_iy (N,)


class RowGradient(NamedTuple):
    """The gradient of some rows; in a list of rows, those that are not valid are to be left alone."""

    rows: slice | Tensor  # (r,) int64
    gradient: Tensor  # (r, D) dL/du; its memory may be reused
    valid: Tensor | None = None  # (r,) bool; None: all


class Sweep(ABC):
    """One way to compute the two sweeps. Owed: `sums` and `row_gradients`; all else has a default."""

    competes: ClassVar[bool] = False  # `centres.backend = "auto"` measures it on CUDA, beside chunked
    bends: ClassVar[bool] = False  # knows of `Queries.bend`; refused with margins that have one, unless it does

    def __init__(self, scale: float, chunk_rows: int | None = None, products: Products | None = None) -> None:
        """Build it; chunk_rows: rows multiplied with at once, None: as many as suit; products: None: exact."""
        self.scale, self.chunk_rows, self.products = scale, chunk_rows, products or Products()

    @classmethod
    def make(cls, scale: float, config: CentresConfig, products: Products) -> Self:
        """Build it as a configuration wants it."""
        return cls(scale, config.chunk_rows, products)

    @classmethod
    def unable(cls, device: torch.device) -> str | None:
        """Why this device cannot run it, to be read after "centres.backend: "; None: it can."""
        return None

    @abstractmethod
    def sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        """Sum over the rows that the filter of `queries` keeps -> O (N, D), Z (N,) of this shard."""

    @abstractmethod
    def row_gradients(self, store: CentreStore, batches: Sequence[MicroStep]) -> Iterator[RowGradient]:
        """Give the rows' gradients piece by piece; a piece may be moved before the next is asked for."""

    def move(self, store: CentreStore, batches: Sequence[MicroStep], optimizer: RowOptimizer, lr: float) -> None:
        """Move trainable rows by their gradients, piece by piece."""
        for piece in self.row_gradients(store, batches):
            move_rows(store, piece, optimizer, lr)
            del piece  # or its memory would be there while the next is made

    # What "auto" asks of those that compete.

    def sums_by_itself(self, store: CentreStore, queries: Queries) -> bool:
        """Whether `sums` of these is its own work, not handed on to the chunked path."""
        return True

    def moves_by_itself(self, store: CentreStore, optimizer: RowOptimizer) -> bool:
        """Whether `move` of one micro-step is its own work, not handed on to the chunked path."""
        return True

    def trial_sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        """`sums`, but an error where those would fall back on another way."""
        return self.sums(store, queries)

    def version(self) -> str:
        """Name and version of what its speed depends on beside torch; "": nothing."""
        return ""

    def forget(self) -> None:  # noqa: B027 (most keep nothing)
        """Let go of memory that is kept from call to call."""


def move_rows(store: CentreStore, piece: RowGradient, optimizer: RowOptimizer, lr: float) -> None:
    """Move the rows of a piece that are valid."""
    optimizer.step(store, piece.rows, piece.gradient, lr, piece.valid)
