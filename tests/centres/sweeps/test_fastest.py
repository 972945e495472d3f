"""centres.backend = "auto" with graphs that a test can capture: the fastest of three sweeps. Times are made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import kernel_cases
from helpers.kernel_cases import Case
from helpers.measured_cases import CPU, ROWS, FakeKernels, moved, of_few_rows
from helpers.recording import Recording
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps.base import Queries
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.fastest import FastestSweep
from partialkd.centres.sweeps.graphed import GraphedSweep
from partialkd.centres.sweeps.products import Products
from partialkd.centres.sweeps.tuner import Tuner


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    of_few_rows(monkeypatch)


class FakeGraphs(GraphedSweep):
    """Of the CPU, off by a factor, and remembering over how many rows it was asked."""

    device = "cpu"
    factor = 1.0

    def __init__(self) -> None:
        super().__init__(64.0, capture=Recording())
        self.asked: list[int] = []

    def trial_sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        self.asked.append(len(store.shard))
        total, partition = super().trial_sums(store, queries)
        return total * self.factor, partition

    def sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        self.asked.append(len(store.shard))
        return super().sums(store, queries)


class Copied(Products):
    """As if operands were copies in bfloat16."""

    copied = 2


def of_three(path: Path, times: list[float]) -> tuple[FastestSweep, FakeGraphs, FakeKernels, list[float]]:
    """`times`: of chunked and graphed, then of chunked and fused."""

    def clock(run: Callable[[], object]) -> float:
        run()
        return times.pop(0)

    kernels, graphs = FakeKernels(), FakeGraphs()
    return (
        FastestSweep(ChunkedSweep(64.0), {"graphed": graphs, "fused": kernels}, Tuner(path / "tuning.json"), clock),
        graphs,
        kernels,
        times,
    )


@pytest.mark.parametrize(
    ("graphed", "fused", "used"),
    [(0.5, 0.7, "graphed"), (0.7, 0.5, "fused"), (2.0, 2.0, "chunked"), (0.5, 2.0, "graphed"), (2.0, 0.5, "fused")],
)
def test_the_fastest_of_three(tmp_path: Path, graphed: float, fused: float, used: str) -> None:
    store, queries = kernel_cases.build(Case(rows=150), CPU, 1)
    wanted = ChunkedSweep(64.0).sums(store, queries)
    for run in range(2):
        sweep, graphs, kernels, times = of_three(tmp_path, [1.0, graphed, 1.0, fused])
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(sweep.sums(store, queries), wanted, strict=True))
        assert len(times) == (4 if run else 0)
        assert graphs.asked.count(150) == (2 if used == "graphed" else 0)
        assert kernels.asked.count(150) == (2 if used == "fused" else 0)
        assert (graphs._graph is not None) == (used == "graphed")  # that of the measuring is gone
    assert list(json.loads((tmp_path / "tuning.json").read_text()).values()) == [used]


@pytest.mark.parametrize(("wrong", "used"), [("graphed", "fused"), ("fused", "graphed"), ("both", "chunked")])
def test_one_that_disagrees_does_not_stop_the_other(wrong: str, used: str, tmp_path: Path) -> None:
    store, queries = kernel_cases.build(Case(rows=150), CPU, 1)
    sweep, graphs, kernels, _ = of_three(tmp_path, [1.0, 0.5, 1.0, 0.5])
    graphs.factor = 1.02 if wrong in ("graphed", "both") else 1.0
    kernels.factor = 1.02 if wrong in ("fused", "both") else 1.0
    with pytest.warns(UserWarning, match="is not used: O is off by 2.0e-02") as said:
        sweep.sums(store, queries)
    told = [str(one.message) for one in said]
    for name in ("graphed", "fused"):
        assert sum(f": {name} is not used" in text for text in told) == (wrong in (name, "both"))
    assert (graphs.asked.count(150), kernels.asked.count(150)) == (used == "graphed", used == "fused")
    assert not (tmp_path / "tuning.json").exists()  # the next run tries again


def test_a_graph_is_measured_where_there_is_no_kernel(tmp_path: Path) -> None:
    """Rows of another type than the kernels multiply: graphed or chunked; of samples and movements: chunked."""
    store, queries = kernel_cases.build(Case(rows=150), CPU, 1)
    sweep, graphs, kernels, times = of_three(tmp_path, [1.0, 0.5])
    kernels.types = (torch.bfloat16,)
    sweep.move(*moved(store, queries))
    sweep.sums(*kernel_cases.build(Case(rows=600, filter="sampled"), CPU, 1))
    sweep.sums(*kernel_cases.build(Case(rows=600, filter="seen"), CPU, 1))
    assert len(times) == 2
    sweep.sums(store, queries)
    assert (times, graphs.asked[-1], kernels.asked) == ([], 150, [])


def test_what_was_measured_beside_what_is_part_of_the_shape(tmp_path: Path) -> None:
    store, queries = kernel_cases.build(Case(rows=150), CPU, 1)
    for kernels_take, products in (
        (torch.bfloat16, Products()),
        (torch.float32, Products()),
        (torch.float32, Copied()),
    ):
        for run in range(2):
            sweep, _, kernels, times = of_three(tmp_path, [1.0, 0.5, 1.0, 0.7])
            kernels.types, sweep.chunked.products = (kernels_take,), products
            sweep.sums(store, queries)
            assert len(times) == (4 if run else 0 if kernels_take == torch.float32 else 2)


def test_rows_are_not_moved_by_a_graph(tmp_path: Path) -> None:
    """So that their movement by the chunked path is not measured twice."""
    store, queries = kernel_cases.build(Case(rows=150), CPU, 1)
    sweep, graphs, kernels, times = of_three(tmp_path, [1.0, 2.0])
    sweep.move(*moved(store, queries))
    assert (times, graphs.asked, kernels.asked) == ([], [], [ROWS] * 3)
    assert list(json.loads((tmp_path / "tuning.json").read_text()).values()) == ["chunked"]
