"""benchmarks/stores.py, small: every trial is another one, on the same pairs, and what is made of the seeds."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.places import ROOT

SCRIPT = ROOT / "benchmarks" / "stores.py"
PHASES = ("teacher.train", "student", "alone")
SMALL = ("width=0.125", "depth=0.3", "embedding_dim=16")


@pytest.fixture(scope="module")
def stores() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    specification = importlib.util.spec_from_file_location("stores", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["stores"] = module  # typing.NamedTuple looks its module up
    specification.loader.exec_module(module)
    sys.path.remove(str(SCRIPT.parent))
    return module


def test_differences_are_paired_by_seed(stores: ModuleType) -> None:
    exact = [{"loss": x, "accuracy": x, "auc": x} for x in (0.5, 0.7, 0.9)]
    better = [
        {"loss": x, "accuracy": x + d, "auc": x} for x, d in zip((0.5, 0.7, 0.9), (0.01, 0.02, 0.03), strict=True)
    ]
    found = stores.summary({"fp32": exact, "int8": better})
    assert found["int8"]["accuracy"]["seeds"] == pytest.approx([0.51, 0.72, 0.93])
    assert found["int8"]["accuracy"]["mean"] == pytest.approx(0.72)
    assert found["int8"]["accuracy"]["std"] == pytest.approx(0.21)
    gap = found["int8"]["accuracy"]["difference"]
    assert gap["mean"] == pytest.approx(0.02)
    assert gap["half_width"] == pytest.approx(4.303 * 0.01 / 3**0.5)  # two degrees of freedom
    assert found["fp32"]["accuracy"]["difference"] == {"mean": 0, "half_width": 0}


def test_each_trial_is_another_and_an_exact_one_comes_first(stores: ModuleType) -> None:
    base = stores.load_config(stores.DEFAULT).model_dump(mode="json", exclude_none=True)
    trials = stores.trials(base["student"], base["alone"], base["teacher"])
    methods: dict[str, list[Any]] = {}
    for trial in trials:
        phase = stores.parse_config({**base, "alone": None, "student": trial.phase}).student
        methods.setdefault(trial.method, []).append(phase)
    assert {name: len(phases) for name, phases in methods.items()} == {
        "arcdistill": 4, "adadistill": 7, "arcface": 8, "arcface, adamw": 2,
    }  # fmt: skip
    for phases in methods.values():
        exact = phases[0].centres
        assert (exact.store, exact.moments, exact.second_moment, exact.sample_rate) == ("fp32", "fp32", "full", 1.0)
        assert len({phase.model_dump_json() for phase in phases}) == len(phases)


@pytest.mark.slow
def test_what_it_measures(tmp_path: Path) -> None:
    """One method, with steps of 24 images of 60 identities: not every class is in a batch."""
    out = tmp_path / "out.json"
    small = [f"{phase}.model.{key}" for phase in PHASES for key in SMALL]
    small += [f"{phase}.global_batch=24" for phase in PHASES]
    drawn = {"identities": 60, "images_per_identity": 2, "held_out_identities": 4, "pairs": 20}
    small += [f"data.prepare.{key}={value}" for key, value in drawn.items()]
    data = [f"data.path={tmp_path / 'data'}", "data.loader=jpeg", "data.image_size=16", "evaluate.folds=2"]
    command = [sys.executable, str(SCRIPT), *small, *data, "--steps", "2", "--teacher-steps", "1", "--seeds", "2"]
    command += ["--json", "--out", str(out), "--method", "adadistill"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    got = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert got.returncode == 0, got.stderr
    result = json.loads(got.stdout)
    assert json.loads(out.read_text()) == result
    assert result.keys() >= {"device", "torch", "python", "commit", "world_size", "steps", "seeds", "load"}
    assert list(result["methods"]) == ["adadistill"]
    found = result["methods"]["adadistill"]
    assert len(found) == 7
    assert len({tuple(one["loss"]["seeds"]) for one in found.values()}) == 7  # each setting was used
    assert all(0 <= accuracy <= 1 for one in found.values() for accuracy in one["accuracy"]["seeds"])
