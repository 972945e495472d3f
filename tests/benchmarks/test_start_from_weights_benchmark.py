"""benchmarks/start_from_weights.py: the runs that it compares."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.places import ROOT
from partialkd.config import Config
from partialkd.config.load import parse_config
from partialkd.training.schedule import Schedule

SCRIPT = ROOT / "benchmarks" / "start_from_weights.py"


def test_a_started_student_gets_a_third_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And starts from the run before it, which has not seen the new identities."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", ["start_from_weights.py"])
    script = runpy.run_path(str(SCRIPT))
    seen: dict[str, Config] = {}

    def accuracy(tree: dict[str, Any], _: Any) -> float:
        seen[tree["run"]["name"]] = parse_config(tree)
        return 0.5

    script["of_seed"].__globals__.update(accuracy=accuracy)
    assert script["of_seed"](tmp_path, 3, None) == {"seed": 3, "before": 0.5, "scratch": 0.5, "started": 0.5}
    before, scratch, started = (seen[f"{name}_3"] for name in ("before", "scratch", "started"))
    steps = lambda config, identities: Schedule.of_phase(
        config.student, identities * script["IMAGES"] // script["BATCH"]
    )
    everybody, old = script["IDENTITIES"], script["IDENTITIES"] - script["NEW"]
    assert steps(before, old).total_steps == steps(scratch, everybody).total_steps == script["STEPS"]
    assert 3 * steps(started, everybody).total_steps <= script["STEPS"]
    assert started.student.weights == started.student.centres.weights == str(tmp_path / "before_3")
    assert scratch.student.weights is None
    assert len((tmp_path / "new.txt").read_text().split()) == script["NEW"]
    assert scratch.data.exclude_identities is None
