"""Sweep chunk by chunk with the library's matrix products and one Triton kernel between them (term_kernel.py).

A chunk is three launches: logits = unit rows times scaled embeddings; logits -> terms, with masks and row sums; O +=
terms times unit rows, added in float32 by the product itself. Rows that are not in the type of products, and lists of
them (samples, rows not seen yet), are one copy more. The movement of trainable rows is three launches as well, and
those of the optimiser (row_updates.py). Products, chunks and what is beyond the kernel's reach (bent negatives, several
micro-steps on listed rows, float64) are those of chunked.

The sums come from one CUDA graph, as in graphed.py. Of a list of rows the graph takes as many as there have been at
most, rounded up: what is more is -1, which stands for none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from partialkd.centres.row_filter import RowFilter
from partialkd.centres.row_optimizers import RowOptimizer
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps.base import MicroStep, Queries, offset_of
from partialkd.centres.sweeps.chunked import GRADIENTS_CHUNK, SUMS_CHUNK, ChunkedSweep
from partialkd.centres.sweeps.fused import FusedSweep
from partialkd.centres.sweeps.graphed import MOST_CHUNKS, GraphedSweep
from partialkd.centres.sweeps.listed_rows import kept_rows

ROUNDED_UP = 16  # a list of rows to a multiple of its power of two over this


@dataclass(frozen=True)
class _Operands:
    """A global batch, as kernels and products want it."""

    embeddings: Tensor  # (N, D)
    own: Tensor  # (N,) int32 row of the sample's class, -1: of no row here


class GemmSweep(GraphedSweep):
    """Matrix products of the library, and all between them in one kernel."""

    bends = False

    @classmethod
    def unable(cls, device: torch.device) -> str | None:
        problem = FusedSweep.unable(device)  # the same package and devices
        return problem.replace('"fused"', '"gemm"') if problem else None

    def sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        if not self.sums_by_itself(store, queries):
            return ChunkedSweep.sums(self, store, queries)
        inputs = self._inputs(store, queries)
        graph = self._graph_or_warn(store, queries, inputs) if self._captures(store, queries, inputs) else None
        return graph(inputs) if graph else self._sums(store, inputs)

    def trial_sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        inputs = self._inputs(store, queries)
        if not self._captures(store, queries, inputs):
            return self._sums(store, inputs)
        return self._graph_of(store, queries, inputs)(inputs)

    def move(self, store: CentreStore, batches: Sequence[MicroStep], optimizer: RowOptimizer, lr: float) -> None:
        """Move by chunks of three launches and those of the optimiser."""
        able = self.moves_by_itself(store, optimizer) and not any(queries.bend for queries, _, _ in batches)
        everything = all(queries.filter.everything for queries, _, _ in batches)
        if not able or (len(batches) > 1 and not everything):
            super().move(store, batches, optimizer, lr)
            return
        for rows, gradient in self._gradients(store, batches):
            if isinstance(rows, Tensor):
                optimizer.step(store, rows.clamp_min(0).long(), gradient, lr, rows >= 0)
            else:
                optimizer.step(store, rows, gradient, lr)

    def sums_by_itself(self, store: CentreStore, queries: Queries) -> bool:
        return self._takes(store) and queries.bend is None and len(queries.embeddings) > 0

    def moves_by_itself(self, store: CentreStore, optimizer: RowOptimizer) -> bool:
        return self._takes(store) and store.scale is None

    def version(self) -> str:
        return f"Triton {_kernels().triton.__version__}"

    def _takes(self, store: CentreStore) -> bool:
        return store.length.dtype == torch.float32 and 0 < len(store.shard) < 2**31

    def _captures(self, store: CentreStore, queries: Queries, inputs: Sequence[Tensor]) -> bool:
        count = len(inputs[2]) if len(inputs) > 2 else len(store.shard)
        chunks = -(-count // self._rows_per_chunk(queries, SUMS_CHUNK))
        return not self._failed and store.device.type == self.device and 0 < chunks <= MOST_CHUNKS

    def _inputs(self, store: CentreStore, queries: Queries) -> list[Tensor]:
        """List what changes from batch to batch: embeddings, own rows, and the rows where they are not all."""
        operands = _operands(queries)
        rows = _listed(queries.filter)
        if rows is None:
            return [operands.embeddings, operands.own]
        return [operands.embeddings, operands.own, self._padded(rows) if store.device.type == self.device else rows]

    def _padded(self, rows: Tensor) -> Tensor:
        """Fill a list up with -1, so that the next lists of about as many rows have the same length."""
        step = max(1, (1 << (max(1, len(rows)) - 1).bit_length()) // ROUNDED_UP)
        wanted = -(-len(rows) // step) * step
        self._longest = longest = max(wanted, self._longest if self._longest <= wanted + step else 0)
        return torch.nn.functional.pad(rows, (0, longest - len(rows)), value=-1)

    def _sums(self, store: CentreStore, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Sum as captured: every input is read where it lies."""
        x, own, *listed = inputs
        rows = listed[0] if listed else None
        static = Queries(x, own >= 0, own, RowFilter(len(store.shard), own))
        size, kernels = self._rows_per_chunk(static, SUMS_CHUNK), _kernels()
        count = len(store.shard) if rows is None else len(rows)
        total, columns = torch.zeros_like(x), self._columns(static)
        logits, terms = self._workspace(x, min(size, count))
        sums = x.new_zeros(kernels.blocks(len(logits)), len(x))
        for part, at, unit in self._chunks(store, rows, count, size, terms.dtype):
            n = len(unit)
            self.products.multiply(unit, columns, logits[:n])
            kernels.sum_terms(logits[:n], terms[:n], own, at, store.scale, offset_of(self.scale), sums)
            self.products.add(terms[:n].T, unit, total)
            del part, unit
        return total, sums.sum(0)

    def _gradients(self, store: CentreStore, batches: Sequence[MicroStep]) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Give rows, a slice or a list (r,) int32 with -1 for none, and their gradient (r, D), whose memory is used
        again."""
        first = batches[0][0]
        rows, size, kernels = _listed(first.filter), self._rows_per_chunk(first, GRADIENTS_CHUNK), _kernels()
        count = len(store.shard) if rows is None else len(rows)
        operands = [_operands(queries) for queries, _, _ in batches]
        columns = [self._columns(queries) for queries, _, _ in batches]
        plain = [self.products.operand(one.embeddings) for one in operands]
        logits, terms = self._workspace(first.embeddings, min(size, count))
        gradient = first.embeddings.new_empty(len(logits), store.dim)
        for part, at, unit in self._chunks(store, rows, count, size, terms.dtype):
            n = len(unit)
            for k, (_, weight, target) in enumerate(batches):
                self.products.multiply(unit, columns[k], logits[:n])
                kernels.weigh_terms(logits[:n], terms[:n], operands[k].own, at, offset_of(self.scale), weight, target)
                combine = self.products.add if k else self.products.multiply
                combine(terms[:n], plain[k], gradient[:n])
            del unit
            yield part, gradient[:n]

    def _workspace(self, x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Memory for logits and terms (rows, N); the same where products take float32."""
        logits = x.new_empty(rows, len(x))
        return logits, torch.empty_like(logits, dtype=torch.bfloat16) if self.products.copied else logits

    def _chunks(
        self, store: CentreStore, rows: Tensor | None, count: int, size: int, dtype: torch.dtype
    ) -> Iterator[tuple[slice | Tensor, Tensor | int, Tensor]]:
        """Cut the rows -> rows, as optimisers and as kernels take them, and unit rows (r, D), int8 ones unscaled."""
        known = None if rows is None else rows.clamp_min(0)
        for start in range(0, count, size):
            stop = min(start + size, count)
            if rows is None or known is None:
                yield slice(start, stop), start, store.unit[start:stop].to(dtype)
            else:
                listed = rows[start:stop]
                yield listed, listed, store.unit.index_select(0, known[start:stop]).to(dtype)


def _operands(queries: Queries) -> _Operands:
    own = torch.where(queries.owned, queries.row, -1).to(torch.int32)
    return _Operands(queries.embeddings.contiguous(), own)


def _listed(kept: RowFilter) -> Tensor | None:
    """List the rows that the filter keeps (n,) int32, -1 for none; None: all rows."""
    if kept.everything:
        return None
    lists = [rows for rows in kept_rows(kept) if rows is not None]
    return torch.cat(lists) if lists else kept.positives.new_empty(0, dtype=torch.int32)


def _kernels() -> ModuleType:
    from partialkd.centres.sweeps import term_kernel

    return term_kernel
