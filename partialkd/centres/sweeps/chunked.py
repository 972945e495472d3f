"""Sweep chunk by chunk with torch's matrix products, on any device, without ever holding an (N, C) tensor.

The precision of the products is that of partialkd.centres.sweeps.products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps.base import Bend, MicroStep, Queries, RowGradient, Sweep, offset_of
from partialkd.centres.sweeps.bend import offset_with
from partialkd.centres.sweeps.chunks import Chunk, ChunkSize, cache_of, chunks

# Logits in a chunk on the CPU: few chunks, for threads meet at the end of each; but the second sweep also passes over
# the chunk's rows several times. Best of 2^19 to 2^23 on two CPU cores at N = 256 (benchmarks/centre_step.py).
SUMS_CHUNK, GRADIENTS_CHUNK = ChunkSize(1 << 22, copies=0), ChunkSize(1 << 20, copies=2)


class ChunkedSweep(Sweep):
    """Matrix products over chunks of rows; any device. Extra memory: one chunk of logits and of rows, and O.

    With a bend another chunk of logits, of df/dc.
    """

    bends = True

    def sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        x = queries.embeddings
        total, partition = torch.zeros_like(x), torch.zeros_like(x[:, 0])
        rows = self._rows_per_chunk(queries, SUMS_CHUNK)
        workspace, nothing = Workspace(), torch.zeros_like(x[:, 0])
        columns = self._columns(queries)
        for chunk in chunks(store, [queries.filter], rows, self.products):
            terms = workspace.take(x, len(chunk), len(x))
            slopes = self._exponentiate(columns, chunk, terms, queries.bend)
            if chunk.kept is not None:
                terms.masked_fill_(~chunk.kept[:, None], 0.0)
            workspace.put(chunk.own(queries), nothing)
            partition += terms.sum(0)
            if slopes is not None:
                terms *= slopes
                del slopes
            factors = self.products.operand(terms)
            for piece in chunk.pieces:
                self.products.add(factors[piece.lines].T, piece.unit, total)
            del chunk, piece, factors  # before the next copies rows
        return total, partition

    def row_gradients(self, store: CentreStore, batches: Sequence[MicroStep]) -> Iterator[RowGradient]:
        rows = self._rows_per_chunk(batches[0][0], GRADIENTS_CHUNK)
        filters = [queries.filter for queries, _, _ in batches]
        operand = self.products.operand
        columns = [self._columns(queries) for queries, _, _ in batches]
        plain = [operand(queries.embeddings) for queries, _, _ in batches]
        workspace = Workspace()
        for chunk in chunks(store, filters, rows, self.products):
            gradient = store.length.new_empty(len(chunk), store.dim)
            for k, (queries, weight, target_gradient) in enumerate(batches):
                terms = workspace.take(weight, len(chunk), len(weight))
                slopes = self._exponentiate(columns[k], chunk, terms, queries.bend)
                terms *= weight
                if slopes is not None:
                    terms *= slopes
                    del slopes
                if len(batches) > 1 and chunk.kept is not None:
                    terms *= queries.filter.holds(chunk.rows)[:, None]
                workspace.put(chunk.own(queries), target_gradient)
                combine = self.products.add if k else self.products.multiply
                combine(operand(terms), plain[k], gradient)
            pieces = [RowGradient(piece.rows, gradient[piece.lines]) for piece in chunk.pieces]
            if chunk.kept is not None:
                pieces = [RowGradient(chunk.rows, gradient, chunk.kept)]
            del chunk, gradient
            yield from pieces
            del pieces

    def _rows_per_chunk(self, queries: Queries, size: ChunkSize) -> int:
        x = queries.embeddings
        usual = size.rows(cache_of(x.device), len(x), x.shape[1], x.element_size(), self.products.copied)
        return self.chunk_rows or usual

    def _columns(self, queries: Queries) -> Tensor:
        """Scaled embeddings that rows are multiplied with to give logits, (D, N) line by line."""
        return self.products.operand((queries.embeddings * self.scale).T.contiguous())

    def _exponentiate(self, columns: Tensor, chunk: Chunk, terms: Tensor, bend: Bend | None) -> Tensor | None:
        """Compute terms (r, N) = exp(scale * f(cosine) - offset) -> df/dc (r, N), None where nothing is bent."""
        for piece in chunk.pieces:
            self.products.multiply(piece.unit, columns, terms[piece.lines])
        slopes = bend.bend(terms, self.scale) if bend else None
        if bend or offset_of(self.scale):
            terms -= offset_with(self.scale, bend)
        terms.exp_()
        return slopes


class Workspace:
    """Memory for one chunk of logits at a time, used again for the next; grows when a chunk has more rows."""

    MARGIN = 64  # numbers on either side, where what is put outside goes; lines begin where products like them

    def __init__(self) -> None:
        self._memory, self._used = torch.empty(0), 0

    def take(self, like: Tensor, rows: int, columns: int) -> Tensor:
        """Take (rows, columns), contiguous, of the type and device of `like`; its content is left over."""
        self._used = rows * columns
        if self._memory.numel() < self._used + 2 * self.MARGIN:
            self._memory = like.new_empty(self._used + 2 * self.MARGIN)
        return self._memory[self.MARGIN : self.MARGIN + self._used].view(rows, columns)

    def put(self, at: Tensor, values: Tensor) -> None:
        """Write values (n,) at these places (n,) of what was taken, read line by line; outside of it nothing."""
        self._memory.scatter_(0, at.clamp(-1, self._used).add_(self.MARGIN), values)
