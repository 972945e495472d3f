"""Training on a pretend CUDA device (helpers/pretend_cuda): devices never mixed, no wait of the host within a step.

Two ranks. Waits that are there all the same are listed here, each with its reason; one that is not is a failure, and so
is one that is listed and has gone.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from helpers.jobs import TORCHRUN
from helpers.places import ROOT, TESTS
from helpers.pretend_cuda import phases
from helpers.pretend_cuda.hooks import COMPILER

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed"),
]
# DeepSpeed looks at the norm at stages 1-3 before it steps: one number, once a step.
NORM = {f"{what} at training/student.py:_step_at" for what in ("_local_scalar_dense", "torch.tensor(numbers, device)")}
# torch sends objects from where the group computes: with gloo, which stands in for NCCL here, from the CPU.
OBJECTS = {"allgather_ of a CPU tensor at world/world.py:gather_objects"}
# Which of the batch's classes were not sampled decides what is brought in (docs/centres.md).
WINDOWS = {
    "Stream.synchronize at centres/host_memory.py:finish",
    "nonzero at centres/host_memory.py:copy_from",
    "index by a mask at centres/host_memory.py:enter",
    "_unique2 at centres/host_memory.py:enter",
    "copy to the host at centres/host_memory.py:enter",
    "copy from pageable memory at centres/host_memory.py:add",
}
# What DeepSpeed does itself at stage 3, called by the network and the step: it gathers parameters and waits for them.
GATHERED = {
    "copy to the host at training/student.py:embed",
    "torch.tensor(numbers, device) at training/student.py:embed",
    "Stream.synchronize at training/student.py:timed",
    "torch.cuda.synchronize at training/student.py:_step_at",
}
WAITS: dict[str, set[str]] = {"moving averages, in host memory": WINDOWS}


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{TESTS}", "PYTHONWARNINGS": "ignore"}


def trained(folder: Path, *what: str) -> list[dict[str, Any]]:
    """What each of two ranks noted."""
    command = [*TORCHRUN, "-m", "helpers.pretend_cuda.phases", str(folder), *what]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(2)]


def check(found: list[dict[str, Any]], names: list[str]) -> None:
    """No collective that NCCL would refuse; no wait within a step that is not listed; both ranks alike in number."""
    for rank in found:
        assert list(rank) == names
        for name, noted in rank.items():
            stage, _, case = name.partition(", ")
            assert all(math.isfinite(loss) for loss in noted["losses"]), name
            assert len(noted["losses"]) == phases.STEPS + 1
            assert set().union(*(noted[part]["refused"] for part in ("first", "steps", "after"))) <= OBJECTS, name
            allowed = WAITS.get(case, set()) | (NORM if int(stage) else set()) | (GATHERED if stage == "3" else set())
            waited = set(noted["steps"]["waits"])
            assert waited <= allowed, name
            copied = noted["steps"]["copies"]
            if case in ("trainable", "moving averages", "fixed"):  # pixels, and all else of a batch: augmented or not
                assert copied == {"page-locked, not waited for": 2 * (phases.STEPS - 1)}, name


@pytest.mark.slow
def test_stages_0_and_2_on_two_ranks(tmp_path: Path) -> None:
    check(trained(tmp_path, "0", "2"), [f"{stage}, {case}" for stage in (0, 2) for case in phases.CASES])


@pytest.mark.slow
def test_stages_1_and_3_and_further_cases_on_two_ranks(tmp_path: Path) -> None:
    names = [f"{stage}, {case}" for stage in (1, 3) for case in phases.CASES]
    check(trained(tmp_path, "1", "3", "further"), [*names, *(f"1, {case}" for case in phases.FURTHER)])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton, whose interpreter runs the kernels")
def test_the_device_refuses_what_cuda_does_and_notes_what_waits() -> None:
    """On it: a batch in one copy, no kernel compiled after the first steps, a zero embedding named, what is set."""
    command = [sys.executable, "-m", "helpers.pretend_cuda.checks"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_tests_that_need_a_gpu_run_on_it(tmp_path: Path) -> None:
    """Two cases of each, for all of them take minutes; those that it cannot stand in for are skipped by name."""
    command = [sys.executable, "-m", "pytest", "-p", "helpers.pretend_cuda.plugin", "-m", "gpu", "-q", "-rs"]
    command += ["--first-and-last", "--junitxml", str(tmp_path / "report.xml")]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    cases = ElementTree.parse(tmp_path / "report.xml").getroot().findall(".//testcase")
    skipped = [str(one.get("message")) for case in cases for one in case.findall("skipped")]
    assert all(why.startswith("pretend device: ") for why in skipped), skipped
    run = {
        (case.get("classname"), str(case.get("name")).partition("[")[0])
        for case in cases
        if case.find("skipped") is None
    }
    assert len(run) >= 12
