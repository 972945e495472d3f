"""centres.backend = "auto": which sweep is used for which shape. Times are made up; nothing here needs Triton.

On the CPU nothing is captured: there are two, chunked and fused. test_fastest.py has all three.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from helpers import kernel_cases
from helpers.kernel_cases import Case
from helpers.measured_cases import CPU, ROWS, made, moved, of_few_rows
from partialkd.centres.rounding import Draw
from partialkd.centres.row_optimizers import RowAdamW, RowSGD
from partialkd.centres.sweeps import fused
from partialkd.centres.sweeps.choose import BACKENDS, make_sweep
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.fastest import FastestSweep, first_rows
from partialkd.centres.sweeps.fused import BOTH, FusedSweep
from partialkd.config import CentresConfig


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    of_few_rows(monkeypatch)


@pytest.mark.parametrize(("seconds", "used"), [(0.5, "fused"), (2.0, "chunked")])
def test_the_faster_is_used_and_kept_between_runs(tmp_path: Path, seconds: float, used: str) -> None:
    store, queries = kernel_cases.build(Case(rows=150), CPU, 1)
    wanted = ChunkedSweep(64.0).sums(store, queries)
    for run in range(2):
        sweep, kernels, clock = made(tmp_path, seconds)
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(sweep.sums(store, queries), wanted, strict=True))
        assert clock.measured == (0 if run else 2)
        assert kernels.asked.count(150) == (2 if used == "fused" else 0)
        assert kernels.asked.count(ROWS) == (0 if run else 2)
    assert list(json.loads((tmp_path / "tuning.json").read_text()).values()) == [used]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rows_are_measured_on_copies(tmp_path: Path, optimizer: str) -> None:
    """And then move once, by the faster sweep."""
    results = []
    for auto in (True, False):
        store, queries = kernel_cases.build(Case(rows=150), CPU, 1)
        sweep, kernels, clock = made(tmp_path, 0.5)
        rule = RowSGD(store, 0.9, 0.1) if optimizer == "sgd" else RowAdamW(store, (0.9, 0.999), 1e-8, 0.1, "row")
        with store.rounding(Draw(3, 5)):
            (sweep if auto else ChunkedSweep(64.0)).move(*moved(store, queries, rule))
        assert rule.weight_decay == 0.1
        assert (kernels.asked, clock.measured) == (([ROWS, ROWS, ROWS, 150], 2) if auto else ([], 0))
        results.append(store.state())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
    assert [key.split(",")[0] for key in json.loads((tmp_path / "tuning.json").read_text())] == [
        f"backend of {optimizer}"
    ]


@pytest.mark.parametrize("why", ["deterministic", "few rows", "few sampled", "type", "products", "optimiser", "steps"])
def test_nothing_is_measured(tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "deterministic":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    case = Case(
        rows=ROWS - 1 if why == "few rows" else 150,
        filter="sampled" if why == "few sampled" else "everything",
        dtype="float64" if why == "type" else "float32",
    )
    store, queries = kernel_cases.build(case, CPU, 1)
    sweep, kernels, clock = made(tmp_path, 0.5)
    if why == "products":
        kernels.types = (torch.bfloat16,)
    rows: Any = RowAdamW(store, (0.9, 0.999), 1e-8, 0.1) if why == "optimiser" else None
    arguments = moved(store, queries, rows)
    if why not in ("optimiser", "steps"):
        sweep.sums(store, queries)
    sweep.move(store, arguments[1] * (2 if why == "steps" else 1), *arguments[2:])
    assert (kernels.asked, clock.measured) == ([], 0)


def test_shapes_are_told_apart(tmp_path: Path) -> None:
    sweep, _, clock = made(tmp_path, 0.5)
    for case in (Case(rows=150), Case(rows=150, samples=20), Case(rows=600, filter="sampled"), Case(rows=400)):
        sweep.sums(*kernel_cases.build(case, CPU, 1))
    assert clock.measured == 2 * 3
    sweep.sums(*kernel_cases.build(Case(rows=150, dtype="bfloat16"), CPU, 1))
    assert clock.measured == 2 * 4
    store, queries = kernel_cases.build(Case(rows=600), CPU, 1)
    for runs in ([range(150)], [range(30), range(200, 320)], [range(100)], [range(10), range(100, 300)]):
        sweep.sums(store, replace(queries, filter=replace(queries.filter, sampled=runs)))
    assert clock.measured == 2 * 5  # a window is one piece; two pieces were measured before


@pytest.mark.parametrize(
    "runs", [None, [range(75, 150)], [range(30), range(200, 320)], [range(9, 20), range(500, 600)]]
)
def test_first_rows_are_those_that_a_step_compares_with(runs: list[range] | None) -> None:
    """No others are held, however far apart they lie."""
    store, queries = kernel_cases.build(Case(rows=600, samples=300), CPU, 1)
    queries = replace(queries, filter=replace(queries.filter, sampled=runs))
    rows = torch.cat([torch.arange(600)[run.start : run.stop] for run in runs or [range(600)]])[:ROWS]
    part, asked = first_rows(store, queries)
    assert len(part.shard) == ROWS
    assert torch.equal(part.unit, store.unit[rows])
    assert torch.equal(part.length, store.length[rows])
    assert len(asked.filter.runs) == len(runs or [0])
    assert sum(len(run) for run in asked.filter.runs) == ROWS
    assert asked.filter.keep(0, ROWS).all()
    assert torch.equal(asked.owned, queries.owned & torch.isin(queries.row, rows))
    assert asked.owned.sum() > 10
    assert torch.equal(rows[asked.row[asked.owned]], queries.row[asked.owned])
    assert (part.unit.data_ptr() == store.unit[rows[0]].data_ptr()) == (len(runs or [0]) == 1)


def test_on_the_cpu_auto_is_chunked() -> None:
    assert type(make_sweep(CentresConfig(backend="auto"), 64.0, CPU)) is ChunkedSweep


@pytest.mark.parametrize(
    ("products", "types", "rounded"), [("auto", BOTH, True), ("bf16", BOTH, True), ("fp32", (torch.float32,), False)]
)
def test_on_cuda_kernels_take_rows_of_the_precision_of_products(products: Any, types: Any, rounded: bool) -> None:
    pytest.importorskip("triton")
    sweep = make_sweep(CentresConfig(backend="auto", products=products, chunk_rows=7), 30.0, torch.device("cuda"))
    assert isinstance(sweep, FastestSweep)
    fused = sweep.others["fused"]
    assert isinstance(fused, FusedSweep)
    assert (fused.types, fused.rounded) == (types, rounded)
    assert {(one.scale, one.chunk_rows) for one in (sweep.chunked, *sweep.others.values())} == {(30.0, 7)}


def test_without_triton_auto_is_chunked_or_graphed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "find_spec", lambda _: None)
    sweep = make_sweep(CentresConfig(backend="auto"), 64.0, torch.device("cuda"))
    assert isinstance(sweep, FastestSweep)
    assert set(sweep.others) == {"graphed"}


def test_every_backend_of_the_configuration_is_listed_once() -> None:
    assert {"auto", *BACKENDS} == set(get_args(CentresConfig.model_fields["backend"].annotation))
