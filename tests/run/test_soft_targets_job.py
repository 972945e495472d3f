"""A student that learns a teacher's distribution over all classes, as a whole job: its own centres beside those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.jobs import job, tree
from helpers.ranks import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

MODEL = {"name": "mobilefacenet_gdc", "embedding_dim": 8, "width": 0.25, "depth": 0.5}  # the teacher's has 16


def logged(folder: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "runs" / "trial" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["phase"] == "student"}


def test_a_smaller_embedding_learns_from_the_teachers_classifier_and_resumes(tmp_path: Path) -> None:
    """Stopped after two steps on two ranks, gone on with on one: the losses of a run that was not stopped."""
    gkd = {"name": "gkd", "share": 0.9, "ramp_steps": 4}
    student = {"model": MODEL, "method": {"name": "arcface", "scale": 16.0}, "freeze_batchnorm": True, "terms": [gkd]}
    found = []
    for name, stops in (("whole", [(2, 4, "never")]), ("parts", [(2, 2, "never"), (1, 4, "auto")])):
        for ranks, steps, resume in stops:
            settings = tree(tmp_path / name, **student, max_steps=steps)
            settings["run"]["deterministic"] = True
            settings["teacher"]["centres"] = "classifier"
            settings["teacher"]["train"]["freeze_batchnorm"] = True
            del settings["alone"]
            run(job, ranks, settings, resume, False, resume == "auto")
        found.append(logged(tmp_path / name))
    whole, parts = found
    assert whole.keys() == parts.keys() == {2, 4}
    for step in (2, 4):
        for value in ("loss", "term_0_gkd", "cosine"):
            assert parts[step][value] == pytest.approx(whole[step][value], rel=1e-4)
    assert whole[2]["term_0_gkd"] > 0
    manifest = json.loads((tmp_path / "whole" / "runs" / "trial" / "teacher_centres" / "manifest.json").read_text())
    assert (manifest["how"], manifest["dim"], manifest["classes"]) == ("classifier", 16, 12)


@pytest.mark.parametrize(
    ("method", "term"),
    [
        ({"name": "adadistill", "initial_centres": "random"}, {"name": "margin_t"}),
        ({"name": "arcdistill"}, {"name": "logit_kd", "temperature": 2.0}),
    ],
)
def test_moving_and_fixed_centres(method: dict[str, Any], term: dict[str, Any], tmp_path: Path) -> None:
    settings = tree(tmp_path, method={**method, "scale": 16.0}, terms=[term])
    del settings["alone"]
    run(job, 2, settings)
    lines = logged(tmp_path)
    assert all(0 < line[f"term_0_{term['name']}"] < 1e3 for line in lines.values())
