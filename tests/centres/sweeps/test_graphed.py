"""centres.backend = "graphed": what is captured, what is replayed from, and what goes chunk by chunk.

In the place of a CUDA graph: every operation of a run, called again with the tensors that it was called with.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import kernel_cases
from helpers.kernel_cases import Case
from helpers.recording import Recording
from partialkd.centres.row_filter import RowFilter
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps import graphed
from partialkd.centres.sweeps.base import Queries
from partialkd.centres.sweeps.choose import make_sweep
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.graphed import GraphedSweep, Run
from partialkd.centres.sweeps.products import Products, RoundedOnCUDA
from partialkd.config import CentresConfig
from partialkd.errors import ConfigError

CPU = torch.device("cpu")
CASES = {
    "float32": Case(),
    "bfloat16": Case(dtype="bfloat16"),
    "scale 128": Case(scale=128.0),
    "duplicates": Case(labels="duplicates"),
    "of another shard": Case(labels="elsewhere"),
}


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> GraphedSweep:
    return graphed_on_cpu(monkeypatch)


def graphed_on_cpu(monkeypatch: pytest.MonkeyPatch, scale: float = 64.0) -> GraphedSweep:
    monkeypatch.setattr(GraphedSweep, "device", "cpu")
    return GraphedSweep(scale, chunk_rows=30, capture=Recording())


def captured(sweep: GraphedSweep) -> int:
    assert isinstance(sweep._capture, Recording)
    return sweep._capture.captured


def check(sweep: GraphedSweep, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
    """The bits of the chunked path."""
    got = sweep.sums(store, queries)
    wanted = ChunkedSweep(sweep.scale, sweep.chunk_rows, sweep.products).sums(store, queries)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert wanted[0].isfinite().all()
    return got


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_replay_computes_what_the_chunks_do(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every batch's own embeddings and classes, and the rows as they are by then."""
    sweep = graphed_on_cpu(monkeypatch, case.scale)
    store, _ = kernel_cases.build(case, CPU, 0)
    earlier = []
    for seed in range(4):
        _, queries = kernel_cases.build(case, CPU, seed)
        earlier.append((check(sweep, store, queries), queries))
        store.write(slice(7, 40), torch.randn(33, store.dim))
    assert captured(sweep) == 1
    sums = [total for (total, _), _ in earlier]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(sums))  # nor are they one tensor


def test_what_is_returned_is_the_callers(sweep: GraphedSweep) -> None:
    store, queries = kernel_cases.build(Case(), CPU, 1)
    for _ in range(3):
        for result in check(sweep, store, queries):
            result.fill_(torch.nan)
    assert captured(sweep) == 1


def test_int8_rows_are_read_with_their_scales(sweep: GraphedSweep) -> None:
    case = Case()
    dense, queries = kernel_cases.build(case, CPU, 1)
    store = CentreStore.empty(dense.shard, dense.num_classes, case.dim, torch.int8, CPU)
    for _ in range(3):
        store.write(slice(None), torch.randn(case.rows, case.dim))
        check(sweep, store, queries)
    assert captured(sweep) == 1
    assert store.scale is not None
    check(sweep, replace(store, scale=store.scale.clone()), queries)
    assert captured(sweep) == 2


def test_another_store_or_batch_size_takes_its_place(sweep: GraphedSweep) -> None:
    stores = [kernel_cases.build(Case(), CPU, seed)[0] for seed in (1, 2)]
    _, queries = kernel_cases.build(Case(), CPU, 3)
    fewer = replace(queries, **{name: getattr(queries, name)[:20] for name in ("embeddings", "owned", "row")})
    part = replace(stores[1], shard=range(80), unit=stores[1].unit[:80])
    inside = replace(queries, row=queries.row.clamp_max(79), filter=RowFilter(80, queries.row))
    problems = [(stores[0], queries), (stores[1], queries), (stores[1], fewer), (part, inside), (stores[1], queries)]
    for count, (store, asked) in enumerate(problems, start=1):
        for _ in range(2):
            check(sweep, store, asked)
        assert captured(sweep) == count
    sweep.forget()
    check(sweep, stores[1], queries)
    assert captured(sweep) == len(problems) + 1


@pytest.mark.parametrize("why", ["sampled", "seen", "both", "no rows", "chunks", "device"])
def test_what_is_not_captured_goes_chunk_by_chunk(
    why: str, sweep: GraphedSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = why if why in ("sampled", "seen", "both") else "everything"
    case = Case(rows=0, labels="elsewhere") if why == "no rows" else Case(rows=90, filter=kept)
    store, queries = kernel_cases.build(case, CPU, 1)
    assert sweep.sums_by_itself(store, queries) == (why in ("chunks", "device"))
    if why == "chunks":
        monkeypatch.setattr(graphed, "MOST_CHUNKS", 2)  # it takes three
    if why == "device":
        monkeypatch.setattr(GraphedSweep, "device", "cuda")
    assert not sweep.sums_by_itself(store, queries)
    check(sweep, store, queries)
    assert captured(sweep) == 0
    if why == "chunks":
        monkeypatch.setattr(graphed, "MOST_CHUNKS", 3)
        assert sweep.sums_by_itself(store, queries)


def test_what_cannot_be_captured_goes_chunk_by_chunk(sweep: GraphedSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Run) -> Run:
        raise torch.OutOfMemoryError("no room")

    store, queries = kernel_cases.build(Case(), CPU, 1)
    monkeypatch.setattr(sweep, "_capture", fail)
    with pytest.raises(torch.OutOfMemoryError):
        sweep.trial_sums(store, queries)
    with pytest.warns(UserWarning, match="not captured as a CUDA graph: OutOfMemoryError: no room"):
        check(sweep, store, queries)
    assert not sweep.sums_by_itself(store, queries)
    with warnings.catch_warnings(action="error"):  # said once, and not tried again
        check(sweep, store, queries)


class Transfers(TorchDispatchMode):
    """Refuses operations that read one device and write another, as a capture does."""

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operation(*args, **(kwargs or {}))
        devices = {x.device for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)}
        assert len(devices) < 2, f"{operation}: {devices}"
        return out


@pytest.mark.parametrize("store_type", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("products", [Products(), RoundedOnCUDA()])
def test_full_sums_touch_the_device_alone(products: Products, store_type: torch.dtype) -> None:
    """On a device without numbers: what asks it for one, or copies from the host, fails."""
    meta = torch.device("meta")
    store = CentreStore.empty(range(100), 100, 16, store_type, meta)
    x, row = torch.empty(9, 16, device=meta), torch.empty(9, dtype=torch.int64, device=meta)
    queries = Queries(x, torch.empty(9, dtype=torch.bool, device=meta), row, RowFilter(100, row))
    with Transfers():
        total, partition = ChunkedSweep(128.0, 30, products).sums(store, queries)
    assert (total.shape, partition.shape) == ((9, 16), (9,))


class FakeCUDA:
    """What torch.cuda is asked for by a capture, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.current = "usual"
        side = SimpleNamespace(name="side", wait_stream=lambda other: self.told.append(f"side waits for {other}"))
        graph = SimpleNamespace(replay=lambda: self.told.append("replay"))
        for name, fake in {
            "Stream": lambda: side,
            "current_stream": lambda: self.current,
            "CUDAGraph": lambda: graph,
            "stream": self.stream,
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        graphed._stream.cache_clear()

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, getattr(stream, "name", stream)
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, _: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        """As torch's, which leaves its stream the current one when it fails."""
        self.told.append(f"capture, {capture_error_mode}")
        before, self.current = self.current, stream.name
        yield
        self.current = before


@pytest.mark.parametrize("fails", [False, True])
def test_what_cuda_is_asked_for(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in vain on the stream that is then captured; whatever happens, the stream is what it was."""
    cuda, results = FakeCUDA(monkeypatch), (torch.zeros(1), torch.ones(1))

    def run() -> tuple[Tensor, Tensor]:
        cuda.told.append(f"run on {cuda.current}")
        if fails and "capture, thread_local" in cuda.told:
            raise RuntimeError("operation not permitted when stream is capturing")
        return results

    asked = ["side waits for usual", "run on side", "capture, thread_local", "run on side"]
    if fails:
        with pytest.raises(RuntimeError, match="not permitted"):
            graphed.captured_by_cuda(run)
    else:
        replay = graphed.captured_by_cuda(run)
        assert cuda.told == asked
        assert replay() is results
        asked.append("replay")
    assert (cuda.told, cuda.current) == (asked, "usual")
    graphed._stream.cache_clear()


def test_it_is_refused_without_a_gpu() -> None:
    with pytest.raises(ConfigError, match=r'centres\.backend: must be "chunked" or "auto".*"graphed" on cpu'):
        make_sweep(CentresConfig(backend="graphed"), 64.0, CPU)


def test_the_configuration_names_it() -> None:
    sweep = make_sweep(CentresConfig(backend="graphed", chunk_rows=7), 30.0, torch.device("cuda"))
    assert isinstance(sweep, GraphedSweep)
    assert (sweep.scale, sweep.chunk_rows, type(sweep.products)) == (30.0, 7, RoundedOnCUDA)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rounded", [False, True])
def test_a_cuda_graph_computes_what_the_chunks_do(dtype: str, rounded: bool) -> None:
    """With fresh batches, a store that has changed in place, another store and another batch size."""
    cuda = torch.device("cuda")
    products = RoundedOnCUDA() if rounded else Products()
    ours, chunked = (kind(64.0, products=products) for kind in (GraphedSweep, ChunkedSweep))
    with warnings.catch_warnings(action="error"):
        for samples, first in ((256, 0), (256, 10), (96, 20)):
            case = Case(samples=samples, rows=50_000, dim=512, dtype=dtype)
            store, _ = kernel_cases.build(case, cuda, first)
            for seed in range(first, first + 3):
                _, queries = kernel_cases.build(case, cuda, seed)
                assert ours.sums_by_itself(store, queries)
                got, wanted = ours.sums(store, queries), chunked.sums(store, queries)
                for a, b in zip(got, wanted, strict=True):
                    assert float((a - b).norm() / b.norm()) < 1e-6
                store.write(torch.arange(100, 200, device=cuda), torch.randn(100, 512, device=cuda))
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
