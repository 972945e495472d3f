"""The sweep: embeddings against every row of a shard, without ever holding an (N, C) tensor.

With u_j the unit centres, x_i the unit embeddings and p_ij = exp(scale * <x_i, u_j> - offset), one pass over
the rows gives, for every sample of the global batch,

    Z_i = sum_{j != y_i} p_ij          (N,)
    O_i = sum_{j != y_i} p_ij * u_j    (N, D)

from which N_i = log Z_i + offset and dN_i/dx_i = scale * O_i / Z_i (docs/one_batch.md). Sums of chunks and of
ranks are added: |cosine| <= 1 bounds every term, so there is no maximum to keep. offset = max(0, scale - 64).

For trainable rows a second pass recomputes p_ij and turns it into gradients of the rows, chunk by chunk.

Backends: `chunked` (matrix products over chunks of rows, in the precision of partialkd.centres.products), `graphed`
(the same, its full sums captured as a CUDA graph: partialkd.centres.graphed), `fused` (Triton, CUDA:
partialkd.centres.fused) and `reference` (one materialised logits matrix, logsumexp and autograd; for tests). `auto` is
`chunked` on the CPU, on CUDA the fastest of the three (partialkd.centres.measured).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from partialkd.centres.chunks import Chunk, ChunkSize, Queries, cache_of, chunks
from partialkd.centres.products import Products, make_products, rounds
from partialkd.centres.sampling import one_for_all
from partialkd.centres.store import CentreStore
from partialkd.centres.update import RowOptimizer
from partialkd.config import CentresConfig

# Logits in a chunk on the CPU: few chunks, for threads meet at the end of each; but the second sweep also passes over
# the chunk's rows several times. Best of 2^19 to 2^23 on two CPU cores at N = 256 (benchmarks/centre_step.py).
SUMS_CHUNK, GRADIENTS_CHUNK = ChunkSize(1 << 22, copies=0), ChunkSize(1 << 20, copies=2)
LARGEST_SCALE = 64.0  # exp(+-64) and sums of 1e8 such terms fit into float32


def offset_of(scale: float) -> float:
    """The constant subtracted from every logit before exp."""
    return max(0.0, scale - LARGEST_SCALE)


class RowGradient(NamedTuple):
    """Of some rows; of a list, those that are not valid are to be left alone."""

    rows: slice | Tensor  # (r,) int64
    gradient: Tensor  # (r, D) dL/du; its memory may be reused
    valid: Tensor | None = None  # (r,) bool; None: all


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


class ChunkedSweep(Sweep):
    """Matrix products over chunks of rows; any device. Extra memory: one chunk of logits and of rows, and O."""

    def __init__(self, scale: float, chunk_rows: int | None = None, products: Products | None = None) -> None:
        self.scale = scale
        self.chunk_rows = chunk_rows
        self.products = products or Products()

    def sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        """-> O (N, D), Z (N,) of this shard."""
        x = queries.embeddings
        total, partition = torch.zeros_like(x), torch.zeros_like(x[:, 0])
        rows = self._rows_a_chunk(queries, SUMS_CHUNK)
        workspace, nothing = _Workspace(), torch.zeros_like(x[:, 0])
        columns = self._columns(queries)
        for chunk in chunks(store, [queries.filter], rows, self.products):
            terms = workspace.take(x, len(chunk), len(x))
            self._exponentiate(columns, chunk, terms)
            if chunk.kept is not None:
                terms.masked_fill_(~chunk.kept[:, None], 0.0)
            workspace.put(chunk.own(queries), nothing)
            partition += terms.sum(0)
            factors = self.products.operand(terms)
            for piece in chunk.pieces:
                self.products.add(factors[piece.lines].T, piece.unit, total)
            del chunk, piece, factors  # before the next copies rows
        return total, partition

    def row_gradients(
        self, store: CentreStore, batches: Sequence[tuple[Queries, Tensor, Tensor]]
    ) -> Iterator[RowGradient]:
        """Chunk by chunk, over what the batches' filters keep."""
        rows = self._rows_a_chunk(batches[0][0], GRADIENTS_CHUNK)
        filters = [queries.filter for queries, _, _ in batches]
        operand = self.products.operand
        columns = [self._columns(queries) for queries, _, _ in batches]
        plain = [operand(queries.embeddings) for queries, _, _ in batches]
        workspace = _Workspace()
        for chunk in chunks(store, filters, rows, self.products):
            gradient = store.length.new_empty(len(chunk), store.dim)
            for k, (queries, weight, target_gradient) in enumerate(batches):
                terms = workspace.take(weight, len(chunk), len(weight))
                self._exponentiate(columns[k], chunk, terms)
                terms *= weight
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

    def _rows_a_chunk(self, queries: Queries, size: ChunkSize) -> int:
        x = queries.embeddings
        usual = size.rows(cache_of(x.device), len(x), x.shape[1], x.element_size(), self.products.copied)
        return self.chunk_rows or usual

    def _columns(self, queries: Queries) -> Tensor:
        """What rows are multiplied with to give logits, (D, N) line by line."""
        return self.products.operand((queries.embeddings * self.scale).T.contiguous())

    def _exponentiate(self, columns: Tensor, chunk: Chunk, terms: Tensor) -> None:
        """terms (r, N) = exp(scale * cosine - offset)"""
        for piece in chunk.pieces:
            self.products.multiply(piece.unit, columns, terms[piece.lines])
        if offset_of(self.scale):
            terms -= offset_of(self.scale)
        terms.exp_()


class ReferenceSweep(Sweep):
    """The same sums from one materialised (N, R) logits matrix by logsumexp and autograd. For tests."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        """-> O (N, D), Z (N,) of this shard."""
        with torch.enable_grad():
            x = queries.embeddings.detach().requires_grad_()
            negative = self._negative(x, store.directions(slice(None)), queries)
            (slope,) = torch.autograd.grad(negative.sum(), x)  # scale * O / Z
        partition = (negative.detach() - offset_of(self.scale)).exp()
        return slope.nan_to_num() * partition[:, None] / self.scale, partition

    def row_gradients(
        self, store: CentreStore, batches: Sequence[tuple[Queries, Tensor, Tensor]]
    ) -> Iterator[RowGradient]:
        """As ChunkedSweep.row_gradients, all rows at once."""
        used = torch.stack([queries.filter.keep(0, len(store.shard)) for queries, _, _ in batches]).any(0)
        with torch.enable_grad():
            unit = store.directions(slice(None)).detach().requires_grad_()
            loss = unit.sum() * 0
            for queries, weight, target_gradient in batches:
                terms = (self._masked(queries.embeddings, unit, queries) - offset_of(self.scale)).exp()
                cosine = (queries.embeddings * unit[queries.row]).sum(1) * queries.owned if len(unit) else weight * 0
                loss = loss + (weight[:, None] * terms).sum() / self.scale + (target_gradient * cosine).sum()
            (gradient,) = torch.autograd.grad(loss, unit)
        rows = used.nonzero().squeeze(1)
        if len(rows):
            yield RowGradient(rows, gradient[rows])

    def _negative(self, x: Tensor, unit: Tensor, queries: Queries) -> Tensor:
        if not len(unit):
            return x.sum(1) * 0 - torch.inf
        return self._masked(x, unit, queries).logsumexp(1)

    def _masked(self, x: Tensor, unit: Tensor, queries: Queries) -> Tensor:
        """Logits (N, R), -inf at rows not kept and at each sample's own class."""
        logits = self.scale * (x @ unit.T)
        own = torch.zeros_like(logits, dtype=torch.bool)
        samples = queries.owned.nonzero().squeeze(1)
        own[samples, queries.row[samples]] = True
        return logits.masked_fill(own | ~queries.filter.keep(0, len(unit)), -torch.inf)


def make_sweep(config: CentresConfig, scale: float, device: torch.device, dtype: torch.dtype = torch.float32) -> Sweep:
    """The sweep that centres.backend names, for embeddings of this type; ConfigError if this device cannot run it."""
    if config.backend == "reference":
        return ReferenceSweep(scale)
    chunked = ChunkedSweep(scale, config.chunk_rows, make_products(config.products, device, dtype))
    if config.backend == "fused":
        from partialkd.centres.fused import KERNEL_TYPES, FusedSweep, check_fused

        check_fused(device)
        return FusedSweep(scale, config.chunk_rows, chunked.products, KERNEL_TYPES[config.products])
    if config.backend == "graphed":
        from partialkd.centres.graphed import GraphedSweep, check_graphed

        check_graphed(device)
        return GraphedSweep(scale, config.chunk_rows, chunked.products)
    if config.backend == "auto" and device.type == "cuda":
        from partialkd.centres.measured import make_measured

        return make_measured(chunked, rounds(config.products, cuda=True))
    return chunked


def _move_rows(store: CentreStore, piece: RowGradient, optimizer: RowOptimizer, lr: float) -> None:
    if piece.valid is None:
        optimizer.step(store, piece.rows, piece.gradient, lr)
        return
    assert isinstance(piece.rows, Tensor)
    rows, entry = one_for_all(piece.rows, piece.valid)
    with store.only_if(piece.valid.any(), rows):
        optimizer.step(store, rows, piece.gradient[entry], lr)


class _Workspace:
    """Memory for one chunk of logits at a time, used again for the next; grows when a chunk has more rows."""

    MARGIN = 64  # numbers on either side, where what is put outside goes; lines begin where products like them

    def __init__(self) -> None:
        self._memory, self._used = torch.empty(0), 0

    def take(self, like: Tensor, rows: int, columns: int) -> Tensor:
        """(rows, columns), contiguous, of the type and device of `like`; its content is left over."""
        self._used = rows * columns
        if self._memory.numel() < self._used + 2 * self.MARGIN:
            self._memory = like.new_empty(self._used + 2 * self.MARGIN)
        return self._memory[self.MARGIN : self.MARGIN + self._used].view(rows, columns)

    def put(self, at: Tensor, values: Tensor) -> None:
        """Write values (n,) at these places (n,) of what was taken, read line by line; outside of it nothing."""
        self._memory.scatter_(0, at.clamp(-1, self._used).add_(self.MARGIN), values)
