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

    def accuracies(tree: dict[str, Any], _: Any) -> list[tuple[int, float]]:
        name = tree["run"]["name"]
        seen[name] = parse_config(tree)
        return {
            "before": [(360, 0.4)],
            "scratch": [(40, 0.5), (360, 0.6)],
            "started": [(20, 0.5), (40, 0.6), (60, 0.5)],
        }[name.removesuffix("_3")]

    aucs = {"before": 0.6, "scratch": 0.8, "started": 0.7}
    score = lambda folder, _: aucs[folder.name.removesuffix("_3")]
    script["of_seed"].__globals__.update(accuracies=accuracies, score=score)
    found = script["of_seed"](tmp_path, 3, None)
    del found["judged"]
    expected = {"before": 0.4, "scratch": 0.6, "started": 0.5, "steps of scratch": 360, "steps of started": 40}
    assert found == {"seed": 3, **expected, **{f"AUC of {name}": auc for name, auc in aucs.items()}}
    assert script["first_reached"]([(20, 0.5)], 0.6) is None
    before, scratch, started = (seen[f"{name}_3"] for name in ("before", "scratch", "started"))
    steps = lambda config, identities: Schedule.of_phase(
        config.student, identities * script["IMAGES"] // script["BATCH"]
    )
    everybody, old = script["IDENTITIES"], script["OLD"]
    assert steps(before, old).total_steps == steps(scratch, everybody).total_steps == script["STEPS"]
    assert 3 * steps(started, everybody).total_steps <= script["STEPS"]
    assert started.student.weights == started.student.centres.weights == str(tmp_path / "before_3")
    assert scratch.student.weights is None
    assert len((tmp_path / "new.txt").read_text().split()) == everybody - old
    assert scratch.data.exclude_identities is None


def test_intervals_are_students(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    interval = runpy.run_path(str(SCRIPT))["interval"]
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / 3**0.5))
    assert interval([1.0]) == [1.0, None]
