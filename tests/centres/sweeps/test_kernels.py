"""The fused kernels against float64: their logic in Triton's interpreter, themselves on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import kernel_cases, kernel_checks
from helpers.kernel_cases import CASES, Case
from helpers.places import ROOT, TESTS
from partialkd.centres.row_optimizers import RowSGD
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.fused import FusedSweep

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Relative errors: float32 products under exp of up to 128 times a cosine; bfloat16 rounds x, p and what is written.
FLOAT32 = {"Z": 1e-5, "O": 1e-5, "gradient": 1e-5, "worst row": 1e-5, "centre": 1e-5, "unit": 1e-6, "length": 1e-5}
BFLOAT16 = {"Z": 4e-2, "O": 4e-2, "gradient": 1e-2, "worst row": 3e-2, "centre": 1e-2, "unit": 5e-3, "length": 1e-4}
# Three steps: units are rounded by 2^-9 each time, against a way of a twentieth of the centre.
FLOAT32_ADAMW = {"first": 1e-5, "second": 1e-5, "way": 1e-5, "centre": 1e-5, "unit": 1e-6, "length": 1e-5}
BFLOAT16_ADAMW = {"first": 2e-2, "second": 2e-2, "way": 0.1, "centre": 1e-2, "unit": 5e-3, "length": 5e-3}


def check(found: dict[str, float], case: Case) -> None:
    rounded = case.rounded or case.dtype == "bfloat16"
    by_type = (BFLOAT16, BFLOAT16_ADAMW) if rounded else (FLOAT32, FLOAT32_ADAMW)
    allowed = {"rows that should stay": 0.0, "count": 0.0, **by_type["count" in found]}
    assert found
    wrong = {what: error for what, error in found.items() if not error <= allowed[what]}
    assert not wrong


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    """Every case, run once by the interpreter in a process of its own."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}:{ROOT}"}
    command = [sys.executable, "-m", "helpers.kernel_checks"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sums", "move", "adamw"])
@pytest.mark.parametrize("name", CASES)
def test_case_in_the_interpreter(interpreted: dict[str, Any], name: str, kind: str) -> None:
    check(interpreted[f"{kind}, {name}"], CASES[name])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "allowed"), [("tiles", 1e-5), ("repeats", 0.0), ("rounding", 0.1), ("engine", 1e-4), ("measured", 0.0)]
)
def test_all_of_it_in_the_interpreter(interpreted: dict[str, Any], what: str, allowed: float) -> None:
    assert interpreted[what]
    assert max(interpreted[what].values()) <= allowed


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", CASES)
def test_case_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        check(kernel_checks.check_sums(CASES[name], torch.device("cuda")), CASES[name])
        check(kernel_checks.check_move(CASES[name], torch.device("cuda")), CASES[name])
        check(kernel_checks.check_adamw(CASES[name], torch.device("cuda")), CASES[name])
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [30.0, 64.0, 128.0])
@pytest.mark.parametrize(("samples", "rows", "dim"), [(1000, 40_000, 512), (200, 33_333, 64), (130, 9_999, 1024)])
def test_large_case_on_a_gpu(
    samples: int, rows: int, dim: int, scale: float, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles measured first, at 32768 rows and more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    case = Case(samples=samples, rows=rows, dim=dim, scale=scale, dtype=dtype)
    check(kernel_checks.check_sums(case, torch.device("cuda")), case)
    check(kernel_checks.check_move(case, torch.device("cuda")), case)
    check(kernel_checks.check_adamw(case, torch.device("cuda")), case)
    assert (tmp_path / "partialkd" / "tuning.json").exists() == (rows >= 32768)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "check_it", [kernel_checks.check_tiles, kernel_checks.check_repeats, kernel_checks.check_engine]
)
def test_all_of_it_on_a_gpu(check_it: Any) -> None:
    assert max(check_it(torch.device("cuda")).values()) < (1e-4 if check_it is kernel_checks.check_engine else 1e-5)


@pytest.mark.gpu
@needs_gpu
def test_more_than_two_to_the_31_numbers() -> None:
    """The last rows, beyond 32-bit offsets, hold the batch's classes and count in Z and O; only they move."""
    if torch.cuda.get_device_properties(0).total_memory < 40e9:
        pytest.skip("needs 40 GB")
    case = Case(samples=256, rows=2**22 + 5000, dim=512, dtype="bfloat16", labels="last", momentum=0.0)
    store, queries = kernel_cases.build(case, torch.device("cuda"), 1)
    got, wanted = FusedSweep(64.0).sums(store, queries), ChunkedSweep(64.0).sums(store, queries)
    for a, b in zip(got, wanted, strict=True):
        assert float((a - b).norm() / b.norm()) < 2e-2
    old = store.unit[-4:].clone()
    weight, target = torch.zeros(256, device="cuda"), torch.full((256,), -0.25, device="cuda")
    FusedSweep(64.0).move(store, [(queries, weight, target)], RowSGD(store, 0.0, 0.0), 10.0)
    assert torch.equal(store.unit[-4:-1], old[:-1])
    assert float((store.unit[-1].float() - old[-1].float()).norm()) > 0.1
