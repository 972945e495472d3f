"""Which products a processor gets: what its setting does, and which exact kernel is the faster. Times are made up."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from partialkd.centres.sweeps import fastest_products, products
from partialkd.centres.sweeps.fastest_products import FastestProducts, make_products, seconds_on_cpu
from partialkd.centres.sweeps.products import OneDNNProducts, Products, effect_of_setting
from partialkd.centres.sweeps.tuner import Tuner

CPU = torch.device("cpu")
OPERATIONS = ("multiply", "add")


class Other(Products):
    """Another kernel: exact but for a factor; it counts."""

    factor, calls = 1.0, 0

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        self.calls += 1
        out.copy_((a.double() @ b.double()) * self.factor)

    def add(self, a: Tensor, b: Tensor, total: Tensor) -> None:
        self.calls += 1
        total += ((a.double() @ b.double()) * self.factor).float()


def made(path: Path, times: list[float], factor: float = 1.0) -> tuple[FastestProducts, Other]:
    """`times`: of torch's own and of the other, for each shape measured."""
    other = Other()
    other.factor = factor
    return FastestProducts(other, Tuner(path / "tuning.json"), lambda run: times.pop(0)), other


def operands(rows: int = 100, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 32, generator=generator), torch.randn(32, 16, generator=generator)


def check(one: Products, operation: str, a: Tensor, b: Tensor) -> None:
    """Against float64."""
    out = torch.ones(len(a), b.shape[1])
    getattr(one, operation)(a, b, out)
    torch.testing.assert_close(out.double(), a.double() @ b.double() + (operation == "add"), atol=1e-5, rtol=1e-5)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure small products, by fewer rows than they have."""
    monkeypatch.setattr(fastest_products, "SMALL", 100 * 32 * 16)
    monkeypatch.setattr(fastest_products, "MEASURED_ROWS", 8)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("times", "used"), [([1.0, 0.5], "oneDNN"), ([1.0, 0.95], "own"), ([1.0, 2.0], "own")])
def test_the_faster_is_used_kept_and_said(
    operation: str, times: list[float], used: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="partialkd")
    for run in range(2):
        left = list(times) if run == 0 else []  # the next run does not measure
        one, other = made(tmp_path, left)
        for _ in range(3):
            check(one, operation, *operands())
        assert left == []
        assert other.calls == (3 if used == "oneDNN" else 0) + (run == 0)  # one to compare
    (kept,) = json.loads((tmp_path / "tuning.json").read_text()).items()
    assert kept[0].startswith(f"float32 {operation} of 128 x 32 x 16, ")
    assert kept[1] == used
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].endswith("oneDNN" if used == "oneDNN" else "torch's own")


@pytest.mark.usefixtures("few")
def test_ranks_that_measure_at_once_take_the_choice_of_the_first(tmp_path: Path) -> None:
    """So that all of them, and a run that goes on, take what is in the file."""
    tuner, times = Tuner(tmp_path / "tuning.json"), [1.0, 0.5]
    first, _ = made(tmp_path, [1.0, 0.95])

    def seconds(_: Any) -> float:
        check(first, "multiply", *operands())
        return times.pop(0)

    second = FastestProducts(other := Other(), tuner, seconds)
    check(second, "multiply", *operands())
    assert times == []
    assert other.calls == 1  # to compare
    assert list(json.loads((tmp_path / "tuning.json").read_text()).values()) == ["own"]


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"a": NaN}'], ids=["empty", "list", "too deep", "nan"])
@pytest.mark.filterwarnings("ignore:.*is not kept")
def test_a_damaged_file_of_choices_is_as_good_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "tuning.json").write_text(text)
    tuner = Tuner(tmp_path / "tuning.json")
    assert tuner.kept("b") is None
    tuner.keep("b", "own")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("factor", [1.002, float("nan")])
def test_what_is_not_exact_is_not_used(factor: float, tmp_path: Path) -> None:
    one, other = made(tmp_path, [], factor)
    for operation in OPERATIONS:
        check(one, operation, *operands())
    assert other.calls == 2
    assert not (tmp_path / "tuning.json").exists()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("why", ["small", "deterministic"])
def test_nothing_is_measured(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "deterministic":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    one, other = made(tmp_path, [])
    check(one, "multiply", *operands(99 if why == "small" else 100))
    assert other.calls == 0


@pytest.mark.usefixtures("few")
def test_shapes_are_told_apart(tmp_path: Path) -> None:
    """Rows by their power of two; a left operand that lies transposed."""
    times = [1.0, 0.5] * 3
    one, _ = made(tmp_path, times)
    for rows in (100, 128, 129):
        check(one, "multiply", *operands(rows))
    a, b = operands()
    check(one, "multiply", a.T.contiguous().T, b)
    assert times == []


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_processors_own_kernels_by_the_clock(operation: str, transposed: bool, tmp_path: Path) -> None:
    """In a real shape; whichever is faster is exact, if the setting does not round."""
    torch.manual_seed(0)
    a, b = torch.randn(1024, 256), torch.randn(256, 128)
    a = a.T.contiguous().T if transposed else a
    one = FastestProducts(OneDNNProducts(), Tuner(tmp_path / "tuning.json"))
    out, wanted = torch.zeros(1024, 128), a.double() @ b.double()
    getattr(one, operation)(a, b, out)
    assert (out - wanted).norm() < 1e-6 * wanted.norm()
    assert (tmp_path / "tuning.json").exists() == (effect_of_setting() != "rounds")


def test_seconds_are_those_of_one_run() -> None:
    runs: list[int] = []
    assert seconds_on_cpu(lambda: runs.append(1)) >= 0
    assert len(runs) == 5


@pytest.mark.parametrize(("threads", "clock"), [(1, "thread_time"), (2, "perf_counter")])
def test_one_thread_is_timed_by_its_own_time(threads: int, clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that share cores would make each other's kernels slow; of several threads, one's time says nothing."""
    ticks = iter(range(100))
    monkeypatch.setattr(f"partialkd.centres.sweeps.fastest_products.time.{clock}", lambda: float(next(ticks)))
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    assert seconds_on_cpu(lambda: None) == 1


@pytest.mark.parametrize(
    ("effect", "choice", "kind", "said"),
    [
        ("rounds", "bf16", OneDNNProducts, 0),
        ("rounds", "auto", Products, 0),
        ("another kernel", "bf16", FastestProducts, 1),
        ("another kernel", "auto", FastestProducts, 0),
        ("nothing", "bf16", Products, 1),
        ("nothing", "fp32", Products, 0),
    ],
)
def test_what_a_processor_gets(
    effect: str, choice: Any, kind: type, said: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="partialkd")
    fastest_products._say_that_nothing_is_rounded.cache_clear()
    monkeypatch.setattr(fastest_products, "effect_of_setting", lambda: effect)
    for _ in range(2):
        assert type(make_products(choice, CPU)) is kind
    assert [record.getMessage().partition(" on this")[0] for record in caplog.records] == (
        ['centres.products = "bf16" gains nothing'] * said
    )
    assert type(make_products(choice, CPU, torch.float64)) is Products


@pytest.mark.parametrize(("factor", "bits", "effect"), [(0, 0, "nothing"), (0, 1, "another kernel"), (1, 0, "rounds")])
def test_the_processor_is_asked_by_a_product(
    factor: int, bits: int, effect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def multiply(_: Products, a: Tensor, b: Tensor, out: Tensor) -> None:
        torch.mm(*(x.bfloat16().float() if factor else x for x in (a, b)), out=out)
        out[0, 0] += bits * 1e-5

    monkeypatch.setattr(products.OneDNNProducts, "multiply", multiply)
    assert effect_of_setting.__wrapped__() == effect
