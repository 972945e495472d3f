"""Tasks of srun or mpirun that are not joined by torchrun are refused: each would be a job of its own."""

from __future__ import annotations

from typing import Any

import pytest

from partialkd.config import DistConfig
from partialkd.errors import ConfigError
from partialkd.world import launch
from partialkd.world.launch import WRONG_CONFIG, launched, refuse_tasks_that_are_no_ranks

KEYS = ("RANK", *(key for keys in launch._TASKS for key in keys))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)


@pytest.mark.parametrize("key", ["SLURM_NTASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_many_tasks_without_ranks_are_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(key, "2")
    with pytest.raises(ConfigError, match=rf"^{key} is 2, but these 2 tasks are not joined \(no RANK\): .* torchrun"):
        refuse_tasks_that_are_no_ranks()
    monkeypatch.setenv("RANK", "0")
    refuse_tasks_that_are_no_ranks()


def test_one_task_of_a_larger_allocation_is_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    refuse_tasks_that_are_no_ranks()


@pytest.mark.parametrize(("task", "says"), [("0", 1), ("1", 0)])
def test_it_is_said_once_and_nothing_starts(monkeypatch: pytest.MonkeyPatch, task: str, says: int) -> None:
    said: list[Any] = []
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", task)
    monkeypatch.setattr(launch, "say_error", said.append)
    assert launched(DistConfig(), said.append) == WRONG_CONFIG
    assert len(said) == says
