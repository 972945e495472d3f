"""A rank without memory: told apart from other failures, named with advice, and all ranks end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.places import ROOT, TESTS
from partialkd.errors import OutOfMemory
from partialkd.run.out_of_memory import advising, is_out_of_memory
from partialkd.world.world import World, free_port


def test_failed_allocations_are_recognised() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 46)
    with pytest.raises(MemoryError) as of_python:
        bytearray(1 << 62)
    assert is_out_of_memory(of_torch.value)
    assert is_out_of_memory(of_python.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("shape '[2, 3]' is invalid for input of size 5"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), advising("student", World(), lambda: "less would do"):
        _ = 1 / 0


def test_a_rank_without_memory_to_plan_with_still_says_so() -> None:
    def advise() -> str:
        raise MemoryError

    with pytest.raises(OutOfMemory, match=r"rank 0 of 1 is out of memory: .*; nor is there any to plan with"):  # noqa: SIM117
        with advising("student", World(), advise):
            torch.empty(1 << 46)


def test_what_goes_wrong_in_planning_does_not_hide_it() -> None:
    def advise() -> str:
        raise ValueError("no such plan\nat all")

    with pytest.raises(OutOfMemory, match=r"rank 0 of 1 is out of memory: .*; could not be planned: no such plan$"):  # noqa: SIM117
        with advising("student", World(), advise):
            torch.empty(1 << 46)


JOB = """
import sys
sys.path.insert(0, {tests!r})
from helpers.endings import ends
ends()
"""


@pytest.mark.distributed
@pytest.mark.slow
def test_all_ranks_end_with_the_advice(tmp_path: Path) -> None:
    """Not by the timeout, which is a day away."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", JOB.format(tests=str(TESTS)), str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"},
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=200)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [1, 1], said
    assert "error: student: rank 1 of 2 is out of memory: " in said[1]
    assert "centres a rank is" in said[1]
    assert "any of these lowers it: student." in said[1]
    assert "error" not in said[0]


def test_the_error_names_the_rank_and_has_its_own_kind() -> None:
    expected = r"student: rank 0 of 1 is out of memory: .*can't allocate memory.*; less would do"
    with pytest.raises(OutOfMemory, match=expected), advising("student", World(), lambda: "less would do"):
        torch.empty(1 << 46)
