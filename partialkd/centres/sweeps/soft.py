"""Sweep for soft targets: the sums that distil a teacher's distribution over all classes, without an (N, C) tensor.

z_ij = scale * <x_i, u_j> are the student's logits, z'_ij = teacher_scale * <f_i, v_j> the teacher's, over the same rows
of two stores, or of one where the student is compared with the teacher's own centres. At the temperature T, with
e_ij = exp(z_ij / T - offset) and e'_ij = exp(z'_ij / T - offset'), one pass over the rows gives every sample's sums
over all classes but its own,

    sum e (N,),  sum e u (N, D),  sum e' (N,),  sum e' u (N, D),  sum e' z' / T (N,),

and, if they are asked for, those of the cross-entropy at T = 1, from the same student logits: five products of
N x R x D in all, four without. Sums of chunks and of ranks are added.

With groups (GKD) the classes of z_ij / T >= least_i are primary, and the sums above are theirs alone; of the rest there
are sum e, sum e u (a sixth product) and sum e'. `largest` finds what the threshold is made of (one product).

For trainable rows `row_gradients` computes the terms again and weights them: three products.
Extra memory: two chunks of logits (three with groups), and the sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from partialkd.centres.logit_noise import LogitNoise
from partialkd.centres.row_optimizers import RowOptimizer
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps.base import Queries, RowGradient, move_rows, offset_of
from partialkd.centres.sweeps.chunked import Workspace
from partialkd.centres.sweeps.chunks import Chunk, ChunkSize, cache_of, chunks
from partialkd.centres.sweeps.products import Products

# Logits of one network in a chunk on the CPU: half of what they are in chunked.py, for there are two matrices of them.
SOFT_CHUNK, SOFT_GRADIENTS_CHUNK = ChunkSize(1 << 21, copies=0), ChunkSize(1 << 20, copies=2)


@dataclass(frozen=True)
class SoftQueries:
    """The global batch of one micro-step, student's and teacher's, as the owner of one shard sees it."""

    student: Queries
    teacher: Tensor  # (N, D of the teacher) unit length
    store: CentreStore  # the teacher's rows, of the same classes
    least: Tensor | None = None  # (N,) least z / T of the primary classes; None: no groups
    keys: Tensor | None = None  # (N,) int64, of the noise on the teacher's logits


@dataclass(frozen=True)
class Sum:
    """Sums over the classes of this shard."""

    terms: Tensor  # (N,)
    rows: Tensor  # (N, D) of terms times unit rows

    @classmethod
    def empty(cls, x: Tensor) -> Sum:
        """Begin, for embeddings x (N, D)."""
        return cls(torch.zeros_like(x[:, 0]), torch.zeros_like(x))

    def add(self, terms: Tensor, chunk: Chunk, products: Products) -> None:
        """Add the terms (r, N) of a chunk."""
        self.terms.add_(terms.sum(0))
        factors = products.operand(terms)
        for piece in chunk.pieces:
            products.add(factors[piece.lines].T, piece.unit, self.rows)


@dataclass(frozen=True)
class SoftSums:
    """The sums of one pass."""

    student: Sum
    teacher: Sum
    logits: Tensor  # (N,) sum e' z' / T
    hard: Sum | None = None  # of the cross-entropy
    rest: Sum | None = None  # the student's, with groups
    rest_teacher: Tensor | None = None  # (N,) sum e'


@dataclass(frozen=True)
class SoftMicroStep:
    """A micro-step and the weights (N,) of its terms in the gradient of the rows."""

    queries: SoftQueries
    target: Tensor  # dL/dc_iy
    hard: Tensor  # of exp(z - offset)
    student: Tensor  # of e
    teacher: Tensor  # of e'
    rest: Tensor | None = None  # of e in the rest


@dataclass(frozen=True)
class SoftSweep:
    """The passes over the rows, chunk by chunk, by torch's matrix products, on any device."""

    scale: float
    teacher_scale: float
    temperature: float
    products: Products = field(default_factory=Products)
    chunk_rows: int | None = None
    noise: LogitNoise | None = None  # on the teacher's logits

    @property
    def offset(self) -> float:
        """Subtracted from the student's logits over T."""
        return offset_of(self.scale / self.temperature)

    @property
    def teacher_offset(self) -> float:
        """Subtracted from the teacher's logits over T."""
        return offset_of(self.teacher_scale / self.temperature * (self.noise.most if self.noise else 1))

    def sums(self, store: CentreStore, queries: SoftQueries, hard: bool = True) -> SoftSums:
        """Compute the sums of this shard; hard: those of the cross-entropy among them."""
        x, groups = queries.student.embeddings, queries.least is not None
        student, teacher, logits = Sum.empty(x), Sum.empty(x), torch.zeros_like(x[:, 0])
        own, rest = (Sum.empty(x) if wanted else None for wanted in (hard, groups))
        rest_teacher = torch.zeros_like(logits) if groups else None
        for part in self._parts(store, [queries], SOFT_CHUNK):
            terms, primary = part.student(), part.primary
            if rest is not None and rest_teacher is not None:
                rest.add(terms.masked_fill(primary, 0), part.chunk, self.products)
                terms.masked_fill_(~primary, 0)
            student.add(terms, part.chunk, self.products)
            if own is not None:
                own.add(part.hard(), part.chunk, self.products)
            terms = part.teacher(part.terms)
            if rest_teacher is not None:
                rest_teacher += terms.masked_fill(primary, 0).sum(0)
                terms.masked_fill_(~primary, 0)
            teacher.add(terms, part.chunk, self.products)
            logits += part.logits.mul_(terms).sum(0)
            del part, terms  # before the next copies rows
        return SoftSums(student, teacher, logits, own, rest, rest_teacher)

    def largest(self, store: CentreStore, queries: SoftQueries, count: int) -> tuple[Tensor, Tensor]:
        """Find each sample's largest z / T of other classes, and sum exp(z - offset) over all of them.

        -> (count, N) falling, -inf where there are no more classes; (N,).
        """
        x = queries.student.embeddings
        found, total = x.new_full((count, len(x)), -torch.inf), torch.zeros_like(x[:, 0])
        for part in self._parts(store, [queries], SOFT_CHUNK):
            part.student()
            part.leave_out(part.logits, -torch.inf, part.both_kept)
            found = torch.cat([found, part.logits]).topk(count, dim=0).values
            total += part.hard().sum(0)
            del part
        return found, total

    def move(self, store: CentreStore, batches: Sequence[SoftMicroStep], optimizer: RowOptimizer, lr: float) -> None:
        """Move trainable rows by their gradients, piece by piece."""
        for piece in self.row_gradients(store, batches):
            move_rows(store, piece, optimizer, lr)
            del piece

    def row_gradients(self, store: CentreStore, batches: Sequence[SoftMicroStep]) -> Iterator[RowGradient]:
        """Give the rows' gradients piece by piece; a piece may be moved before the next is asked for."""
        plain = [self.products.operand(batch.queries.student.embeddings) for batch in batches]
        gradient = torch.empty(0)
        for part in self._parts(store, [batch.queries for batch in batches], SOFT_GRADIENTS_CHUNK):
            chunk, at = part.chunk, part.number
            if at == 0:
                gradient = store.length.new_empty(len(chunk), store.dim)
            combine = self.products.add if at else self.products.multiply
            combine(self.products.operand(part.weighted(batches[at])), plain[at], gradient)
            if at == len(batches) - 1:
                pieces = [RowGradient(piece.rows, gradient[piece.lines]) for piece in chunk.pieces]
                if chunk.kept is not None:
                    pieces = [RowGradient(chunk.rows, gradient, chunk.kept)]
                gradient = torch.empty(0)
                yield from pieces
                del pieces
            del part, chunk

    def _parts(self, store: CentreStore, batches: Sequence[SoftQueries], size: ChunkSize) -> Iterator[_Part]:
        """Cut the rows into chunks, and give each of them with every micro-step."""
        x = batches[0].student.embeddings
        usual = size.rows(cache_of(x.device), len(x), x.shape[1], 2 * x.element_size(), self.products.copied)
        columns = [
            (self._columns(queries.student.embeddings, self.scale), self._columns(queries.teacher, self.teacher_scale))
            for queries in batches
        ]
        workspaces = Workspace(), Workspace()
        filters = [queries.student.filter for queries in batches]
        for chunk in chunks(store, filters, self.chunk_rows or usual, self.products):
            for at, queries in enumerate(batches):
                yield _Part(self, chunk, store, queries, columns[at], workspaces, at if len(batches) > 1 else None)

    def _columns(self, x: Tensor, scale: float) -> Tensor:
        """Embeddings that rows are multiplied with to give logits over T, (D, N) line by line."""
        return self.products.operand((x * (scale / self.temperature)).T.contiguous())


class _Part:
    """A chunk of rows and a micro-step: `student`, then `hard`, then `teacher`, which share two matrices (r, N)."""

    def __init__(
        self,
        sweep: SoftSweep,
        chunk: Chunk,
        store: CentreStore,
        queries: SoftQueries,
        columns: tuple[Tensor, Tensor],
        workspaces: tuple[Workspace, Workspace],
        number: int | None,
    ) -> None:
        """columns: of student and teacher; number: which of several micro-steps, None: there is one."""
        self.sweep, self.chunk, self.queries, self.columns, self.number = sweep, chunk, queries, columns, number or 0
        x, taught = queries.student.embeddings, queries.store
        self.workspaces, self.same, self.first = workspaces, taught is store, store.shard.start
        self.logits, self.terms = (workspace.take(x, len(chunk), len(x)) for workspace in workspaces)
        self.primary = torch.empty(0)  # (r, N) bool, with groups
        self.own = chunk.own(queries.student)
        several = number is not None and chunk.kept is not None
        self.kept = queries.student.filter.holds(chunk.rows) if several else chunk.kept  # (r,) bool; None: all
        seen = None if self.same or taught.everything_seen else taught.seen[chunk.rows]
        self.both_kept = self.kept if seen is None else seen if self.kept is None else seen & self.kept

    def student(self) -> Tensor:
        """Compute e; `logits` are z / T."""
        for piece in self.chunk.pieces:
            self.sweep.products.multiply(piece.unit, self.columns[0], self.logits[piece.lines])
        if self.queries.least is not None:
            self.primary = self.logits >= self.queries.least
        return self._exponentials(self.sweep.offset, self.terms)

    def hard(self) -> Tensor:
        """Compute exp(z - offset) in the place of the student's `logits`."""
        self.logits.mul_(self.sweep.temperature)
        if offset := offset_of(self.sweep.scale):
            self.logits -= offset
        return self.leave_out(self.logits.exp_(), 0.0, self.kept)

    def teacher(self, out: Tensor) -> Tensor:
        """Compute e' in `out`; `logits` are z' / T, unless they are `out`."""
        for piece in self.chunk.pieces:
            unit = piece.unit if self.same else self.sweep.products.rows(self.queries.store, piece.rows)
            self.sweep.products.multiply(unit, self.columns[1], self.logits[piece.lines])
        if self.sweep.noise is not None and self.queries.keys is not None:
            self.logits *= self.sweep.noise.factors(self.queries.keys, (self.chunk.rows + self.first)[:, None])
        return self._exponentials(self.sweep.teacher_offset, out)

    def weighted(self, batch: SoftMicroStep) -> Tensor:
        """Compute dL/dc_ij."""
        factors = self.student()
        factors *= batch.student if batch.rest is None else torch.where(self.primary, batch.student, batch.rest)
        factors.addcmul_(self.hard(), batch.hard)
        terms = self.teacher(self.logits)
        factors.addcmul_(terms if batch.rest is None else terms.masked_fill_(~self.primary, 0), batch.teacher)
        self.workspaces[1].put(self.own, batch.target)
        return factors

    def leave_out(self, values: Tensor, value: float, kept: Tensor | None) -> Tensor:
        """Put `value` at the samples' own classes and at rows that do not take part."""
        if kept is not None:
            values.masked_fill_(~kept[:, None], value)
        workspace = self.workspaces[0 if values is self.logits else 1]
        workspace.put(self.own, values.new_full((values.shape[1],), value))
        return values

    def _exponentials(self, offset: float, out: Tensor) -> Tensor:
        if offset:
            self.logits -= offset
        torch.exp(self.logits, out=out)
        if offset and out is not self.logits:
            self.logits += offset
        return self.leave_out(out, 0.0, self.both_kept)
