"""A profile of some steps on the ranks that were asked for, as files that the tools of the docs open."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from partialkd.config import RunConfig
from partialkd.training.profiler import Profiler
from partialkd.world.world import World


def profiled(folder: Path, steps: range, rank: int = 0, **run: Any) -> list[str]:
    """Steps that each multiply something -> the files."""
    profiler = Profiler(folder, "student", RunConfig(name="trial", **run), World(rank, 2))
    for step in steps:
        profiler.before(step)
        torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.after(step)
    profiler.close()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    assert profiled(tmp_path, range(1, 6), profile_steps=(2, 3)) == ["profile/student_rank0.trace.json.gz"]
    trace = json.loads(gzip.decompress((tmp_path / "profile" / "student_rank0.trace.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("aten::mm") == 2
    assert "[memory]" in names  # every allocation


def test_nothing_unless_asked_and_on_other_ranks(tmp_path: Path) -> None:
    assert profiled(tmp_path, range(1, 4)) == []
    assert profiled(tmp_path, range(1, 4), rank=1, profile_steps=(1, 2)) == []
    assert profiled(tmp_path, range(5, 8), profile_steps=(1, 2)) == []  # a run that goes on after them


def test_a_chosen_rank_and_a_phase_that_ends_early(tmp_path: Path) -> None:
    files = profiled(tmp_path, range(1, 3), rank=1, profile_steps=(2, 100), profile_ranks=(1, 7))
    assert files == ["profile/student_rank1.trace.json.gz"]


def test_a_disk_that_fails_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").write_text("in the way")
    logging.getLogger("partialkd").propagate = True
    assert profiled(tmp_path, range(1, 3), profile_steps=(1, 1)) == ["profile"]
    assert "the profile cannot be written" in caplog.text
