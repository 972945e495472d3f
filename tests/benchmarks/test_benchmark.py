"""The benchmarks: what they print; that the extra memory of a centre step does not grow with the classes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.places import ROOT
from partialkd.centres.sweeps.products import effect_of_setting

SCRIPT = ROOT / "benchmarks" / "centre_step.py"
KEYS = {
    "kind", "backend", "classes", "batch", "dim", "sample_rate", "seconds", "reference_seconds", "floor_seconds",
    "peak_extra_bytes", "reference_peak_extra_bytes", "precision", "over_floor",
}  # fmt: skip


def centre_step(kind: str, classes: int, *more: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), "--kind", kind, "--classes", str(classes), "--runs", "1", "--json", *more]
    got = subprocess.run([*command, "--batch", "32", "--dim", "64"], capture_output=True, text=True, check=True)
    result = json.loads(got.stdout)
    assert result.keys() >= {"device", "torch", "python", "commit"}
    (measured,) = result["measurements"]
    return measured


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("fixed", []),
        ("ema", ["--store", "bf16"]),
        ("trainable", []),
        ("trainable", ["--sample-rate", "0.2"]),
        ("trainable", ["--term", "logit_kd"]),
    ],
)
def test_extra_memory_does_not_grow_with_the_classes(kind: str, more: list[str]) -> None:
    few, many = (centre_step(kind, classes, "--chunk-rows", "128", *more) for classes in (10_000, 40_000))
    assert few.keys() >= KEYS
    assert all(few[key] > 0 for key in KEYS if key.endswith(("seconds", "bytes")))
    assert many["peak_extra_bytes"] <= 1.1 * few["peak_extra_bytes"]
    assert ("alone_over_floor" in few) == ("--term" in more)
    assert many["reference_peak_extra_bytes"] > 3 * few["reference_peak_extra_bytes"]  # the measure sees what grows


@pytest.mark.slow
def test_what_cannot_be_measured_is_named_and_loses_nothing(tmp_path: Path) -> None:
    """int8 is refused for trained centres, and 10^12 classes have no room anywhere."""
    out = tmp_path / "out.json"
    command = [sys.executable, str(SCRIPT), "--kind", "fixed", "trainable", "--store", "int8", "--products", "bf16"]
    more = ["--classes", "1000", str(10**12), "--batch", "8", "--dim", "16", "--runs", "1", "--out", str(out)]
    got = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    result = json.loads(out.read_text())
    (measured,) = result["measurements"]
    precision = "bf16" if effect_of_setting() == "rounds" else "fp32"  # not every processor multiplies bfloat16
    assert (measured["kind"], measured["classes"], measured["precision"]) == ("fixed", 1000, precision)
    if precision == "bf16":
        against = measured["seconds"] * measured["fp32_products_flops"] / (4 * 8 * 1000 * 16)
        assert measured["over_fp32_products"] == pytest.approx(against)
    left = [(one["kind"], one["classes"], one["why"].split()[0]) for one in result["left_out"]]
    assert left == [("fixed", 10**12, "needs"), ("trainable", 1000, "int8"), ("trainable", 10**12, "int8")]
    assert got.stdout.count("left out: ") == 3


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["fused", "graphed"])
def test_kernels_and_graphs_need_a_gpu(backend: str) -> None:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), "--backend", backend]
    got = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert got.returncode == 2
    assert f"--backend {backend}: needs a GPU; use chunked" in got.stderr


@pytest.mark.slow
def test_unknown_backend_is_refused() -> None:
    got = subprocess.run(
        [sys.executable, str(SCRIPT), "--backend", "magic"], capture_output=True, text=True, check=False
    )
    assert got.returncode == 2
    assert "invalid choice: 'magic'" in got.stderr


@pytest.mark.parametrize(
    ("backend", "products", "store", "on_cpu", "on_cuda"),
    [
        ("chunked", "auto", "fp32", False, True),
        ("auto", "fp32", "bf16", False, False),
        ("chunked", "bf16", "fp32", "rounds", True),
        ("graphed", "auto", "fp32", False, True),
        ("fused", "auto", "fp32", False, True),
        ("fused", "auto", "bf16", False, True),
        ("fused", "auto", "int8", False, True),
        ("fused", "bf16", "fp32", "rounds", True),
        ("reference", "auto", "bf16", False, False),
    ],
)
def test_floor_and_reference_multiply_as_the_step_does(
    backend: str, products: str, store: str, on_cpu: bool | str, on_cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`on_cpu`: also "rounds", where it hangs on what the processor does."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    cases: Any = importlib.import_module("centre_cases")
    case = SimpleNamespace(backend=backend, products=products, store=store)
    for effect in ("rounds", "another kernel", "nothing"):
        monkeypatch.setattr(cases, "effect_of_setting", lambda effect=effect: effect)
        found = [cases.rounded(case, torch.device(name)) for name in ("cpu", "cuda")]
        assert found == [effect == on_cpu if isinstance(on_cpu, str) else on_cpu, on_cuda]


@pytest.mark.slow
def test_loaders_are_compared_on_the_same_files() -> None:
    command = [sys.executable, str(SCRIPT.with_name("loaders.py")), "--images", "128", "--batch", "32", "--runs", "1"]
    got = subprocess.run([*command, "--cores", "1", "--json"], capture_output=True, text=True, check=True)
    result = json.loads(got.stdout)
    rates = result["images_per_second"]["1"]
    assert list(rates) == ["libjpeg", "jpeg", "jpeg to bytes", "dali", "dali reader", "pillow"]
    assert all(0 < rates[way] <= best for way, best in result["best_images_per_second"]["1"].items())
    for need in result["needs"]:
        seconds = sum(
            count / (result["peak_flops"] * result["utilisation"][name]) for name, count in need["flops"].items()
        )
        assert need["images_per_second"] == pytest.approx(1 / seconds)
        assert need["cores"] == pytest.approx(need["images_per_second"] / rates["jpeg to bytes"])
    assert 2e9 < result["needs"][1]["flops"]["mobilefacenet"] < 3.5e9  # three forward passes of 0.44 GFLOP


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ema", "trainable"])
def test_bytes_sent_are_those_of_the_plan(kind: str) -> None:
    command = [sys.executable, str(SCRIPT.with_name("scaling.py")), "--kind", kind, "--classes", "500", "--runs", "1"]
    more = ["--ranks", "1", "3", "--local-batch", "4", "--dim", "16", "--json"]
    got = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    alone, three = json.loads(got.stdout)["measurements"]
    assert alone["bytes"] == alone["planned_bytes"] == 0
    assert three["bytes"] == three["planned_bytes"] > 0
    for one in (alone, three):
        assert all(one[part] > 0 for part in ("seconds", "products_seconds", "collectives_seconds"))
        assert one["model_seconds"] == pytest.approx(one["products_seconds"] + one["collectives_seconds"])
        assert one["over_model"] == pytest.approx(one["seconds"] / one["model_seconds"])


def test_the_model_takes_the_slowest_rank_of_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    model: Any = importlib.import_module("scaling_model")
    one = {"step": [9.0, 6.0, 7.0], "products": [3.0, 1.0, 1.0], "collectives": [1.0, 1.0, 1.0]}
    other = {"step": [8.0, 8.0, 8.0], "products": [1.0, 2.0, 1.0], "collectives": [0.5, 2.0, 3.0]}
    expected = {"seconds": 8.0, "model_seconds": 4.0, "over_model": 2.0}
    assert model.against_model([one, other]) == {**expected, "products_seconds": 2.0, "collectives_seconds": 2.0}


def test_the_model_calls_the_collectives_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row weights are gathered after the sums are reduced: trainable centres."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    model: Any = importlib.import_module("scaling_model")
    scaling: Any = importlib.import_module("scaling")
    args = SimpleNamespace(kind="trainable", classes=12, dim=8, store="fp32", sample_rate=1.0, backend="auto")
    world = model.NotingWorld()
    store = scaling.make_store(args, range(12), world.device)
    calls = model.calls_of(scaling.engine_step(args, world, store, 4), world)
    assert [call.name for call in calls] == ["all_gather", "reduce_scatter", "all_gather"]
    assert [tuple(call.shape) for call in calls] == [(4, 8 + 2), (4, 2 * 8 + 2), (4, 2)]
    assert model.calls_of(model.collectives_alone(calls, world), world) == calls


@pytest.mark.parametrize(("kind", "rate", "scale"), [("ema", 1.0, 1), ("trainable", 1.0, 2), ("fixed", 0.25, 0.25)])
@pytest.mark.parametrize("multiplied", [40, 20])
def test_the_models_products_are_those_of_the_steps_flops(
    kind: str, rate: float, scale: float, multiplied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard of 40 rows; with a limit of 20 the two products are half of what they stand for."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    model: Any = importlib.import_module("scaling_model")
    scaling: Any = importlib.import_module("scaling")
    monkeypatch.setattr(importlib.import_module("centre_step"), "MULTIPLIED", multiplied)
    args = SimpleNamespace(kind=kind, classes=80, dim=8, store="bf16", sample_rate=rate)
    store = scaling.make_store(args, range(40, 80), torch.device("cpu"))
    step, times = model.products_alone(args, store, 6)
    assert step().shape == (6, 8)
    assert times == pytest.approx(scale * 40 / multiplied)


def test_fewer_classes_than_ranks_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    scaling: Any = importlib.import_module("scaling")
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--ranks", "1", "4", "--classes", "3"])
    with pytest.raises(SystemExit):
        scaling.parse_args()
    assert "at least one a rank, got 3 for 4 ranks" in capsys.readouterr().err


@pytest.mark.slow
def test_one_ranks_share_alone() -> None:
    command = [sys.executable, str(SCRIPT.with_name("scaling.py")), "--share-of", "8", "--classes", "8001"]
    more = ["--local-batch", "4", "--dim", "16", "--runs", "1", "--json"]
    got = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    (share,) = json.loads(got.stdout)["measurements"]
    assert (share["rows"], share["batch"]) == (1001, 32)
    assert share["seconds"] > 0 < share["peak_extra_bytes"]


@pytest.mark.parametrize(("made", "differences", "status"), [(99, [], 1), (100, [], 0), (100, ["student: bytes"], 1)])
def test_a_soak_of_too_few_faults_or_another_result_has_failed(
    made: int,
    differences: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """chaos.py: what its exit status is made of."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    chaos: Any = importlib.import_module("chaos")
    assert chaos.status(made, 100, differences) == status
    said = capsys.readouterr().out
    assert ("the time was up (--minutes) after 99 of 100 faults" in said) == (made < 100)
    assert ("not as undisturbed: student: bytes" in said) == bool(differences)
