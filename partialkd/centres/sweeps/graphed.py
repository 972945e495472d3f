"""Sweep as chunked does, the sums of all rows from one CUDA graph that is captured once and then replayed.

A chunk takes about a dozen kernels of a few microseconds each, and a host that starts them one by one may take longer
than they do; a graph is started as a whole. What is computed is what ChunkedSweep.sums computes, by the same kernels in
the same order.

A graph reads and writes the places that it was captured with. Embeddings and own rows are copied to places of its own
before a replay, O and Z out of them after; rows are read where they lie, so what has moved them is seen. It belongs to
one store (where what `sums` reads lies), N and D; another takes its place, and there is never more than one.
It holds on to the memory of a sweep (a chunk of logits, O and a few more (N, D): partialkd.planner.overheads) and to
the settings of products that it was captured with, and it costs the driver about 10 KB a kernel, which is why a shard
of more than MOST_CHUNKS chunks is not captured.

Captured in mode "thread_local": other threads (NCCL's watchdog, DALI, a checkpoint being written) use the device
meanwhile. Before, the sums are made once in vain, on the stream that is captured, so that what libraries load or
allocate at a first call (cuBLAS keeps a workspace a stream) is there and not part of the graph. A sweep that cannot be
captured, for want of memory say, is a warning; the run goes on chunk by chunk.

Not captured: samples of the rows and rows not seen yet, whose pieces and lists change from step to step; and the
movement of trainable rows, whose learning rate and random bits do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from partialkd.centres.row_filter import RowFilter
from partialkd.centres.row_optimizers import RowOptimizer
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps.base import Bend, Queries
from partialkd.centres.sweeps.chunked import SUMS_CHUNK, ChunkedSweep
from partialkd.centres.sweeps.products import Products
from partialkd.errors import PartialKDWarning

Run = Callable[[], tuple[Tensor, Tensor]]  # -> O (N, D), Z (N,)
Capture = Callable[[Run], Run]  # what is returned does the same again, to the same places, from what is there by then

MOST_CHUNKS = 2048  # of a graph


class GraphedSweep(ChunkedSweep):
    """The chunked sweep, with the sums of all rows from a graph."""

    competes = True
    device = "cuda"  # where there are graphs; tests bring a `capture` for another

    def __init__(
        self,
        scale: float,
        chunk_rows: int | None = None,
        products: Products | None = None,
        capture: Capture | None = None,
    ) -> None:
        super().__init__(scale, chunk_rows, products)
        self._capture = capture or captured_by_cuda
        self._graph: _Graph | None = None
        self._failed = False
        self._longest = 0  # list of rows

    @classmethod
    def unable(cls, device: torch.device) -> str | None:
        if device.type == "cuda":
            return None
        return f'must be "chunked" or "auto" where there is no GPU, got "graphed" on {device}'

    def sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        if self.sums_by_itself(store, queries):
            inputs = self._inputs(store, queries)
            if graph := self._graph_or_warn(store, queries, inputs):
                return graph(inputs)
        return super().sums(store, queries)

    def trial_sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        """`sums` of what `sums_by_itself` allows; RuntimeError if it cannot be captured."""
        inputs = self._inputs(store, queries)
        return self._graph_of(store, queries, inputs)(inputs)

    def sums_by_itself(self, store: CentreStore, queries: Queries) -> bool:
        """Whether these sums come from a graph."""
        if self._failed or store.device.type != self.device or not queries.filter.everything:
            return False
        return 0 < len(store.shard) <= MOST_CHUNKS * self._rows_per_chunk(queries, SUMS_CHUNK)

    def moves_by_itself(self, store: CentreStore, optimizer: RowOptimizer) -> bool:
        return False

    def forget(self) -> None:
        """Let go of the graph and its memory."""
        self._graph = None

    def _graph_or_warn(self, store: CentreStore, queries: Queries, inputs: Sequence[Tensor]) -> _Graph | None:
        """Capture it where there is none of these yet; None, and a warning, if that cannot be done."""
        try:
            return self._graph_of(store, queries, inputs)
        except RuntimeError as error:  # of a driver, a device, an allocator
            self.forget()
            self._failed = True
            why = f"{type(error).__name__}: {error}"
            warnings.warn(f"sums are not captured as a CUDA graph: {why}", PartialKDWarning, stacklevel=3)
            return None

    def _graph_of(self, store: CentreStore, queries: Queries, inputs: Sequence[Tensor]) -> _Graph:
        key = _key(store, queries), [value.shape for value in inputs]
        if self._graph is None or self._graph.key != key:
            self.forget()  # before there is another
            static = [value.clone(memory_format=torch.contiguous_format) for value in inputs]
            self._graph = _Graph(key, static, self._capture(lambda: self._sums(store, static)))
        return self._graph

    def _inputs(self, store: CentreStore, queries: Queries) -> list[Tensor]:
        """List what changes from batch to batch: embeddings, owned, row, and a bend's threshold and strength."""
        bend = [] if queries.bend is None else [queries.bend.threshold, queries.bend.strength]
        return [queries.embeddings, queries.owned, queries.row, *bend]

    def _sums(self, store: CentreStore, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Sum as captured: of these inputs, where they lie."""
        x, owned, row, *bend = inputs
        kept = RowFilter(len(store.shard), row)
        static = Queries(x, owned, row, kept, Bend(*bend) if bend else None)  # with nothing cached yet
        return ChunkedSweep.sums(self, store, static)


@dataclass(frozen=True)
class _Graph:
    """The sums of one store for batches of one size."""

    key: object
    inputs: Sequence[Tensor]  # of GraphedSweep._inputs
    replay: Run

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        total, partition = self.replay()
        return total.clone(), partition.clone()


def captured_by_cuda(run: Run) -> Run:
    """Capture `run` as a CUDA graph -> what replays it."""
    stream, current = _stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        run()
    graph = torch.cuda.CUDAGraph()
    # The outer context: torch leaves the stream of a capture that fails the current one.
    with (
        torch.cuda.stream(current),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        results = run()

    def replay() -> tuple[Tensor, Tensor]:
        graph.replay()
        return results

    return replay


@cache
def _stream() -> torch.cuda.Stream:
    """The one stream of all captures: libraries keep their workspaces by stream."""
    return torch.cuda.Stream()


def _key(store: CentreStore, queries: Queries) -> object:
    """Everything that a graph of these sums depends on beside its inputs' values."""
    read = [value for value in (store.unit, store.scale) if value is not None]
    places = [(value.data_ptr(), value.shape, value.stride(), value.dtype) for value in read]
    x = queries.embeddings
    return places, store.length.dtype, x.shape, x.dtype, queries.bend is None
