"""The rows of a step, cut into chunks that are multiplied with one after the other.

A chunk is as many rows as its logits have room for: a piece of the shard, or several sampled pieces that lie apart.
Pieces are multiplied with where they lie, without a copy where the store's type is that of the lengths, and their
logits stand side by side in one matrix, so that all else is done once a chunk.

On CUDA a chunk fills half of the L2 cache: its logits, with the copy that products take of them, and its rows, in the
second sweep with their gradient and one copy of the optimiser's. They are written once and read or written a few times
more, by a kernel each, which then need not go to memory. Never run on a GPU yet.

So a chunk's memory is bounded whatever N and D are; AdamW takes some copies of the rows more than are counted here
(partialkd.planner.plan counts them).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from partialkd.centres.products import Products
from partialkd.centres.sampling import RowFilter
from partialkd.centres.store import CentreStore

LEAST_ROWS = 256  # of a chunk; on CUDA it is a multiple of them


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


@dataclass(frozen=True)
class Piece:
    """Rows that lie together, or a list of rows."""

    columns: slice  # of the chunk's logits
    rows: slice | Tensor  # where they lie in the store; (r,) ascending
    unit: Tensor  # (r, D), as an operand of products


@dataclass(frozen=True)
class Chunk:
    """Some rows of a shard, ready to be multiplied with: slices, or one list."""

    pieces: Sequence[Piece]
    first: int = 0  # place of the first row among the sampled ones; of slices

    def __len__(self) -> int:
        return int(self.pieces[-1].columns.stop)

    def columns(self, queries: Queries) -> tuple[Tensor, Tensor]:
        """Position of each sample's own class in this chunk -> inside (N,) bool, column (N,) int64."""
        rows = self.pieces[0].rows
        if isinstance(rows, Tensor):
            column = torch.searchsorted(rows, queries.row).clamp_max_(len(rows) - 1)
            inside = queries.owned & (rows[column] == queries.row)
        else:
            column = queries.place - self.first
            inside = (column >= 0) & (column < len(self))
        return inside, torch.where(inside, column, 0)


def chunks(store: CentreStore, filters: Sequence[RowFilter], chunk_rows: int, products: Products) -> Iterator[Chunk]:
    """Every row that at least one filter keeps. The filters are of one step, and so sample the same rows.

    Sampled rows come as slices, or as lists where some are no negatives yet; then, as one list, those of the batch's
    classes that were not sampled.
    """
    first = 0
    for slices in side_by_side(filters[0].runs, chunk_rows):
        if all(f.seen is None for f in filters):
            chunk = Chunk(_pieces(store, slices, products), first)
            yield chunk
            first += len(chunk)
        else:
            yield from _listed(store, torch.cat([_kept(filters, rows) for rows in slices]), products)
    if filters[0].sampled is not None:
        yield from _listed(store, torch.cat([f.outside for f in filters]).unique(), products)


@dataclass(frozen=True)
class ChunkSize:
    """How many rows a chunk of one of the two sweeps has."""

    logits: int  # on the CPU
    copies: int  # of a row, beside the one multiplied with, that should fit into the cache too

    def rows(self, cache: int, samples: int, dim: int, number: int, copied: int) -> int:
        """cache: bytes, 0 where there is none; number, copied: bytes of a logit and of its copy for products."""
        if not cache:
            return max(LEAST_ROWS, self.logits // max(samples, dim // 4))  # at most four numbers of rows a logit
        bytes_a_row = samples * (number + copied) + dim * ((copied or number) + self.copies * number)
        return max(1, cache // (2 * bytes_a_row * LEAST_ROWS)) * LEAST_ROWS


def cache_of(device: torch.device) -> int:
    """Bytes of a GPU's L2 cache; 0 elsewhere, and where CUDA knows of none."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def side_by_side(runs: Sequence[range], chunk_rows: int) -> Iterator[list[slice]]:
    """The rows of these runs in order, `chunk_rows` at a time."""
    slices: list[slice] = []
    room = chunk_rows
    for run in runs:
        start = run.start
        while start < run.stop:
            stop = min(start + room, run.stop)
            slices.append(slice(start, stop))
            room, start = room - (stop - start), stop
            if not room:
                yield slices
                slices, room = [], chunk_rows
    if slices:
        yield slices


def _pieces(store: CentreStore, slices: Sequence[slice], products: Products) -> list[Piece]:
    pieces, end = [], 0
    for rows in slices:
        start, end = end, end + rows.stop - rows.start
        pieces.append(Piece(slice(start, end), rows, products.rows(store, rows)))
    return pieces


def _listed(store: CentreStore, rows: Tensor, products: Products) -> Iterator[Chunk]:
    if len(rows):
        yield Chunk([Piece(slice(0, len(rows)), rows, products.rows(store, rows))])


def _kept(filters: Sequence[RowFilter], rows: slice) -> Tensor:
    """Those of a slice that at least one filter keeps (r,) int64."""
    kept = torch.stack([f.keep(rows.start, rows.stop) for f in filters]).any(0)
    return kept.nonzero().squeeze(1) + rows.start
