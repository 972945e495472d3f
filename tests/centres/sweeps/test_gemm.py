"""centres.backend = "gemm": its kernel in Triton's interpreter against float64; graphs and lists; how many launches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import gemm_ranks, kernel_cases, kernel_checks
from helpers.kernel_cases import CASES
from helpers.places import ROOT, TESTS
from partialkd.centres import row_updates
from partialkd.centres.row_filter import RowFilter
from partialkd.centres.row_optimizers import RowAdamW, RowSGD
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps import gemm
from partialkd.centres.sweeps.base import Queries
from partialkd.centres.sweeps.choose import make_sweep
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.gemm import GemmSweep
from partialkd.centres.sweeps.products import RoundedOnCUDA
from partialkd.config import CentresConfig
from partialkd.errors import ConfigError

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Of float32, and of products of rounded numbers, rows or moments, relative (kernel_cases says of what).
WHAT = ("Z", "O", "gradient", "worst row", "centre", "unit", "length", "first", "second", "way")
ALLOWED = {
    "exact": dict.fromkeys(WHAT, 2e-5),
    "rounded": {
        "Z": 4e-2, "O": 4e-2, "gradient": 1e-2, "worst row": 3e-2, "centre": 3e-2, "unit": 5e-3, "length": 5e-3,
        "first": 2e-2, "second": 2e-2, "way": 0.1,
    },
}  # fmt: skip
NAMES = ("tails", "sampled duplicates", "sampled and seen", "no rows", "bfloat16 sampled", "rounded")


def check(found: dict[str, float], name: str) -> None:
    case = CASES[name]
    kind = "rounded" if case.rounded or case.dtype == "bfloat16" else "exact"
    allowed = {"rows that should stay": 0.0, "count": 0.0, **ALLOWED[kind]}
    assert not {what: error for what, error in found.items() if not error <= allowed[what]}


@needs_triton
@pytest.mark.slow
def test_in_the_interpreter() -> None:
    """The kernel between the products, and those that move rows, in a process of their own."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}:{ROOT}"}
    command = [sys.executable, "-m", "helpers.gemm_cases", *NAMES]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["cases"]) == len(NAMES)
    for name, results in found["cases"].items():
        assert len(results) == 4
        for one in results:
            check(one, name)
    assert found["updates"] == {"sgd": "", "adamw": "", "adamw, full": ""}
    assert max(found["int8"].values()) < 1e-5
    assert found["captured"]["all rows"] == 1
    assert found["captured"]["samples"] <= 2  # again for a list that is longer than the room


@needs_triton
@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 3])
def test_steps_over_ranks_equal_the_dense_reference(size: int) -> None:
    """Gradients, losses and moved centres (helpers/gemm_ranks.py); rows are moved by their kernel, samples too."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}:{ROOT}"}
    command = [sys.executable, "-m", "helpers.gemm_ranks", str(size)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    started = json.loads(done.stdout)
    assert set(started) == set(gemm_ranks.CASES)
    for case, kernels in started.items():
        update = "adamw_update" if "AdamW" in case else "sgd_update"
        assert kernels["terms_kernel"] > 0, case
        assert set(kernels) == {"terms_kernel"} | ({update} if case not in gemm_ranks.UNTRAINED else set()), case


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu(name: str) -> None:
    cuda = torch.device("cuda")
    check(kernel_checks.check_sums(CASES[name], cuda, sweep=kernel_cases.gemm), name)
    check(kernel_checks.check_move(CASES[name], cuda, sweep=kernel_cases.gemm), name)
    check(kernel_checks.check_adamw(CASES[name], cuda, sweep=kernel_cases.gemm), name)


def test_it_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r'centres\.backend: must be "chunked" or "auto".*"gemm" on cpu'):
        make_sweep(CentresConfig(backend="gemm"), 64.0, CPU)


@pytest.mark.parametrize("problem", ["does not compile", "is wrong"])
def test_a_kernel_that_fails_is_not_used(problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said once, in one line; rows move as without it."""

    def run(store: CentreStore, *_: Any) -> None:
        if problem == "does not compile":
            raise RuntimeError("no compiler\nin this container")

    monkeypatch.setattr(row_updates, "DEVICES", ("cpu",))
    monkeypatch.setattr(row_updates, "run_kernel", run)
    monkeypatch.setattr(row_updates, "find_spec", lambda _: True)
    row_updates.FOUND.clear()
    moved = []
    for used in (True, False):
        store = CentreStore.random(range(9), 9, 16, torch.float32, CPU, 0)
        rule, gradient = RowSGD(store, 0.9, 0.1), torch.ones(9, 16)
        if used:
            with pytest.warns(UserWarning, match="^rows are moved by torch's operations: sgd: [^\n]*$"):
                rule.step(store, slice(0, 9), gradient, 0.1)
        else:
            rule.by_torch(store, slice(0, 9), gradient, 0.1)
        moved.append(store.unit)
    assert torch.equal(*moved)
    row_updates.FOUND.clear()


# ------------------------------------------------------------------------------------------------------- launches

VIEWS = {"view", "slice", "t", "transpose", "expand", "unsqueeze", "select", "detach", "alias", "as_strided", "reshape",
         "_unsafe_view", "permute", "squeeze", "empty", "empty_like", "new_empty", "empty_strided"}  # fmt: skip
ROWS, SAMPLES, DIM, L2 = 125_000, 1024, 512, 50 << 20  # of a rank; an H100's cache


class Launches(TorchDispatchMode):
    """Counts operations that start a kernel; `kernels`: those of Triton."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += operation.overloadpacket.__name__ not in VIEWS
        return operation(*args, **(kwargs or {}))

    def kernel(self, *_: Any, **__: Any) -> None:
        self.count += 1


CEILINGS = {  # what is started for a step of 125,000 rows; before there was one kernel for the rows: in brackets
    ("chunked", "fixed", "fp32"): 560,
    ("chunked", "sgd", "bf16"): 2000,  # (10,804)
    ("chunked", "adamw", "bf16"): 2000,  # (29,177)
    ("gemm", "fixed", "fp32"): 180,
    ("gemm", "fixed", "bf16"): 140,
    ("gemm", "fixed", "int8"): 180,
    ("gemm", "sgd", "bf16"): 400,
    ("gemm", "adamw", "bf16"): 400,
}


@pytest.mark.parametrize(("backend", "kind", "store_type"), CEILINGS)
def test_launches_of_a_step_are_bounded(
    backend: str, kind: str, store_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without numbers, with kernels that are counted in the place of Triton's."""
    found = launches(backend, kind, store_type, monkeypatch)
    assert CEILINGS[backend, kind, store_type] / 4 < found <= CEILINGS[backend, kind, store_type], found


def launches(backend: str, kind: str, store_type: str, monkeypatch: pytest.MonkeyPatch) -> int:
    counted = Launches()
    fake = type("Kernels", (), {
        "blocks": staticmethod(lambda rows: -(-rows // 32)), "sum_terms": counted.kernel, "weigh_terms": counted.kernel,
        "move_sgd": counted.kernel, "move_adamw": counted.kernel,
    })  # fmt: skip
    for module in ("partialkd.centres.sweeps.chunked", "partialkd.centres.sweeps.gemm"):
        monkeypatch.setattr(f"{module}.cache_of", lambda _: L2, raising=False)
    monkeypatch.setattr(row_updates, "DEVICES", ("meta",))
    monkeypatch.setattr(row_updates, "agrees", lambda *_: True)
    monkeypatch.setattr(row_updates, "_kernels", lambda: fake)
    monkeypatch.setattr(gemm, "_kernels", lambda: fake)
    meta = torch.device("meta")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[store_type]
    store = CentreStore.empty(range(ROWS), ROWS, DIM, dtype, meta)
    row = torch.empty(SAMPLES, dtype=torch.int64, device=meta)
    x, owned = torch.empty(SAMPLES, DIM, device=meta), torch.empty(SAMPLES, dtype=torch.bool, device=meta)
    queries = Queries(x, owned, row, RowFilter(ROWS, row))
    sweep = {"chunked": ChunkedSweep, "gemm": GemmSweep}[backend](64.0, None, RoundedOnCUDA())
    rule = None
    if kind == "sgd":
        rule = RowSGD(store, 0.9, 0.0)
    elif kind == "adamw":
        rule = RowAdamW(store, (0.9, 0.999), 1e-8, 0.0, "full", torch.bfloat16)
    weight = torch.empty(SAMPLES, device=meta)
    with counted:
        sweep.sums(store, queries)
        if rule:
            sweep.move(store, [(queries, weight, weight)], rule, 0.1)
    return counted.count
