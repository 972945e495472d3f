"""Cut the rows of a step into chunks that are multiplied with one after the other.

A chunk is as many rows as its logits have room for: a piece of the shard, or several sampled pieces that lie apart.
Pieces are multiplied with where they lie, without a copy where the store's type is that of the lengths, and their
logits stand one below the other in one matrix (rows, N), so that all else is done once per chunk. A row's logits lie
together: of the products with the rows only O then reads a matrix across its lines, which BLAS pays for.

On CUDA a chunk fills half of the L2 cache: its logits, with the copy that products take of them, and its rows, in the
second sweep with their gradient and one copy of the optimiser's. They are written once and read or written a few times
more, by a kernel each, which then need not go to memory.

So a chunk's memory is bounded whatever N and D are; AdamW takes some copies of the rows more than are counted here
(partialkd.planner.plan counts them).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from partialkd.centres.row_filter import RowFilter, outside_of
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps.base import Queries
from partialkd.centres.sweeps.products import Products

LEAST_ROWS = 256  # of a chunk; on CUDA it is a multiple of them


@dataclass(frozen=True)
class Piece:
    """Rows that lie together, or a list of rows."""

    lines: slice  # of the chunk's logits
    rows: slice | Tensor  # where they lie in the store; (r,) ascending
    unit: Tensor  # (r, D), as an operand of products


@dataclass(frozen=True)
class Chunk:
    """Some rows of a shard, ready to be multiplied with: slices, or one list."""

    pieces: Sequence[Piece]
    first: int = 0  # place of the first row among the sampled ones; of slices
    kept: Tensor | None = None  # (rows,) bool: those that take part; None: all

    def __len__(self) -> int:
        return int(self.pieces[-1].lines.stop)

    @cached_property
    def rows(self) -> Tensor:
        """Rows of the store (rows,) int64."""
        device = self.pieces[0].unit.device
        parts = (piece.rows for piece in self.pieces)
        return torch.cat([x if isinstance(x, Tensor) else torch.arange(x.start, x.stop, device=device) for x in parts])

    def own(self, queries: Queries) -> Tensor:
        """Place of each sample's own class in the logits, read line by line (N,) int64; outside: not in them."""
        rows, samples = self.pieces[0].rows, len(queries.row)
        if not isinstance(rows, Tensor):
            return queries.entry - self.first * samples
        line = torch.searchsorted(rows, queries.row).clamp_max_(len(rows) - 1)
        line = torch.where(queries.owned & (rows[line] == queries.row), line, -1)
        return line * samples + queries.number


def chunks(store: CentreStore, filters: Sequence[RowFilter], chunk_rows: int, products: Products) -> Iterator[Chunk]:
    """Cut every row that at least one filter keeps. The filters are of one step, and so sample the same rows.

    Sampled rows come as slices; then, as lists, the batch's classes that were not sampled. Which of them take part is
    a mask, so that their number is known to the host.
    """
    first = 0
    unseen = any(f.seen is not None for f in filters)
    for slices in side_by_side(filters[0].runs, chunk_rows):
        kept = torch.cat([_kept(filters, rows) for rows in slices]) if unseen else None
        yield Chunk(_pieces(store, slices, products), first, kept)  # not held here while the next is made
        first += sum(rows.stop - rows.start for rows in slices)
    if filters[0].sampled is None or not len(store.shard):
        return
    outside = outside_of(filters)
    for start in range(0, len(outside.rows), chunk_rows):
        rows, valid = (entries[start : start + chunk_rows] for entries in outside)
        yield Chunk([Piece(slice(0, len(rows)), rows, products.rows(store, rows))], kept=valid)


@dataclass(frozen=True)
class ChunkSize:
    """How many rows a chunk of one of the two sweeps has."""

    logits: int  # on the CPU
    copies: int  # of a row, beside the one multiplied with, that should fit into the cache too

    def rows(self, cache: int, samples: int, dim: int, number: int, copied: int) -> int:
        """Rows of a chunk; cache: bytes, 0: none; number, copied: bytes of a logit and of its copy for products."""
        if not cache:
            return max(LEAST_ROWS, self.logits // max(samples, dim // 4))  # at most four numbers of rows a logit
        bytes_per_row = samples * (number + copied) + dim * ((copied or number) + self.copies * number)
        return max(1, cache // (2 * bytes_per_row * LEAST_ROWS)) * LEAST_ROWS


def cache_of(device: torch.device) -> int:
    """Bytes of a GPU's L2 cache; 0 elsewhere, and where CUDA knows of none."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def side_by_side(runs: Sequence[range], chunk_rows: int) -> Iterator[list[slice]]:
    """Take the rows of these runs in order, `chunk_rows` at a time."""
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


def _kept(filters: Sequence[RowFilter], rows: slice) -> Tensor:
    """Which rows of a slice at least one filter keeps (r,) bool."""
    return torch.stack([f.keep(rows.start, rows.stop) for f in filters]).any(0)
