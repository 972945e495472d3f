"""centres.backend = "auto" uses no kernels that disagree with the chunked sweep by more than rounding, or that fail."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import kernel_cases
from helpers.kernel_cases import Case
from helpers.measured_cases import CPU, ROWS, Clock, FakeKernels, made, moved, of_few_rows
from partialkd.centres.row_optimizers import RowAdamW, RowSGD
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps import fastest as measured
from partialkd.centres.sweeps.choose import make_sweep
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.fastest import FastestSweep
from partialkd.centres.sweeps.products import Products
from partialkd.centres.sweeps.tuner import Tuner
from partialkd.config import CentresConfig


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    of_few_rows(monkeypatch)


class Rounded(Products):
    """As RoundedOnCUDA, for a CPU."""

    def operand(self, x: Tensor) -> Tensor:
        return x.bfloat16().float()


class Stuck(FakeKernels):
    """Moments as they should be; the rows stay."""

    def move(self, store: CentreStore, *rest: Any) -> None:
        unit, length = store.unit.clone(), store.length.clone()
        super().move(store, *rest)
        store.unit.copy_(unit)
        store.length.copy_(length)


class WrongGradient(FakeKernels):
    """A fiftieth too long."""

    def move(self, store: CentreStore, batches: Any, *rest: Any) -> None:
        super().move(store, [(queries, 1.02 * weight, 1.02 * target) for queries, weight, target in batches], *rest)


class Forgetful(FakeKernels):
    """The gradient is right, the old centre is lost."""

    def move(self, store: CentreStore, *rest: Any) -> None:
        old = store.read(slice(None))
        super().move(store, *rest)
        store.write(slice(None), store.read(slice(None)) - old)


@pytest.mark.parametrize("factor", [1.02, float("nan")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_disagrees_is_not_used(tmp_path: Path, factor: float, dtype: str) -> None:
    store, queries = kernel_cases.build(Case(rows=150, dtype=dtype), CPU, 1)
    for _ in range(2):  # the next run finds the same: it is not kept
        sweep, kernels, _ = made(tmp_path, 0.1, factor)
        off = "nan" if factor != factor else "2.0e-02"
        with pytest.warns(UserWarning, match=f"sums, .*: fused is not used: O is off by {off} of its norm"):
            sweep.sums(store, queries)
        with warnings.catch_warnings(action="error"):  # said once
            sweep.sums(store, queries)
        with pytest.warns(UserWarning, match=r"sgd, .*: fused is not used: length is off by"):
            sweep.move(*moved(store, queries))
        assert set(kernels.asked) == {ROWS}
    assert not (tmp_path / "tuning.json").exists()


@pytest.mark.parametrize("rate", [0.1, 1e-4, 0.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kernels", "optimizer", "off"),
    [
        (Stuck(), "momentum", "way"),
        (Stuck(), "sgd", "way"),
        (Stuck(), "adamw", "way"),
        (WrongGradient(), "momentum", "momentum"),
        (WrongGradient(), "sgd", "way"),
        (WrongGradient(), "adamw", "first"),
        (Forgetful(), "sgd", "unit"),
    ],
)
def test_kernels_that_move_wrongly_are_not_used(
    kernels: FakeKernels, optimizer: str, off: str, dtype: str, rate: float, tmp_path: Path
) -> None:
    """However short the way is at the step's learning rate, beside what rounding moves."""
    store, queries = kernel_cases.build(Case(rows=150, dtype=dtype), CPU, 1)
    n, partition = len(queries.embeddings), ChunkedSweep(64.0).sums(store, queries)[1]
    rule: Any = RowSGD(store, 0.9 if optimizer == "momentum" else 0.0, 0.01, store.unit.dtype)
    if optimizer == "adamw":
        rule = RowAdamW(store, (0.9, 0.999), 1e-8, 0.01, "row", store.unit.dtype)
    sweep = FastestSweep(ChunkedSweep(64.0), {"fused": kernels}, Tuner(tmp_path / "tuning.json"), Clock(0.5))
    kernels.asked.clear()
    with pytest.warns(UserWarning, match=rf"fused is not used: .*\b{off} is off by"):
        sweep.move(store, [(queries, 64 / n / partition, torch.full_like(partition, -64 / n / 2))], rule, rate)
    assert kernels.asked == [ROWS, ROWS]


@pytest.mark.parametrize("optimizer", ["momentum", "sgd", "adamw"])
def test_movements_that_differ_by_rounding_agree(optimizer: str, tmp_path: Path) -> None:
    """The chunked path with operands in bfloat16 against float32 ones."""
    store, queries = kernel_cases.build(Case(samples=64, rows=150, dim=256, scale=30.0, dtype="bfloat16"), CPU, 1)
    rounded = FakeKernels()
    rounded.scale, rounded.products = 30.0, Rounded()
    partition = ChunkedSweep(30.0).sums(store, queries)[1]
    rule: Any = RowSGD(store, 0.9 if optimizer == "momentum" else 0.0, 0.01, torch.bfloat16)
    if optimizer == "adamw":
        rule = RowAdamW(store, (0.9, 0.999), 1e-8, 0.01, "row", torch.bfloat16)
    sweep = FastestSweep(ChunkedSweep(30.0), {"fused": rounded}, Tuner(tmp_path / "tuning.json"), Clock(0.5))
    with warnings.catch_warnings(action="error"):
        sweep.move(store, [(queries, 30 / 64 / partition, torch.full_like(partition, -30 / 64 / 2))], rule, 0.1)
    assert rounded.asked[-1] == 150


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1 + 3e-6), ("bfloat16", 1.005)])
def test_what_differs_by_rounding_agrees(tmp_path: Path, dtype: str, factor: float) -> None:
    store, queries = kernel_cases.build(Case(rows=150, dtype=dtype), CPU, 1)
    sweep, kernels, _ = made(tmp_path, 0.1, factor)
    with warnings.catch_warnings(action="error"):
        sweep.sums(store, queries)
    assert kernels.asked[-1] == 150


def test_kernels_that_fail_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such instruction")

    store, queries = kernel_cases.build(Case(rows=150), CPU, 1)
    sweep, kernels, _ = made(tmp_path, 0.1)
    monkeypatch.setattr(kernels, "sums", fail)
    with pytest.warns(UserWarning, match="fused is not used: failed: RuntimeError: no such instruction"):
        got = sweep.sums(store, queries)
    assert torch.equal(got[0], ChunkedSweep(64.0).sums(store, queries)[0])


@pytest.mark.parametrize("where", ["without_past", "norm", "seconds"])
def test_nothing_that_fails_while_measuring_ends_the_run(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies that have no room, errors of the device that come to light when a result is read, or by the clock."""

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    store, queries = kernel_cases.build(Case(rows=150), CPU, 1)
    sweep, kernels, _ = made(tmp_path, 0.1)
    if where == "seconds":
        sweep.seconds = fail  # type: ignore[assignment]  # that it returns nothing is the point
    else:
        monkeypatch.setattr(measured, "without_past" if where == "without_past" else "_error", fail)
    with pytest.warns(UserWarning, match="fused is not used: failed: OutOfMemoryError: no room"):
        sweep.move(*moved(store, queries))
    assert 150 not in kernels.asked
    assert bool(store.moments["momentum"].any())  # the step itself was taken


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "products"), [("bfloat16", "auto"), ("float32", "fp32")])
@pytest.mark.parametrize("scale", [30.0, 64.0, 128.0])
def test_they_agree_on_a_gpu(
    scale: float, dtype: str, products: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is faster: it has an entry in the file, which what disagrees has not."""
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    case = Case(samples=200, rows=40_000, dim=512, scale=scale, dtype=dtype)
    store, queries = kernel_cases.build(case, torch.device("cuda"), 1)
    sweep = make_sweep(CentresConfig(backend="auto", products=products), scale, store.device)
    partition = sweep.sums(store, queries)[1]
    batch = (queries, scale / 200 / partition, torch.full_like(partition, -scale / 400))
    for kind in ("sgd", "adamw"):
        store.moments.clear()
        betas = (0.9, 0.999)
        rule = RowSGD(store, 0.9, 0.01) if kind == "sgd" else RowAdamW(store, betas, 1e-8, 0.1, "row", store.unit.dtype)
        sweep.move(store, [batch], rule, 0.1)
    kept = json.loads((tmp_path / "partialkd" / "tuning.json").read_text())
    assert sum(key.startswith("backend of ") for key in kept) == 3
