"""benchmarks/methods.py, small: every file of configs/methods/ trains, once only, and is compared by seed."""

from __future__ import annotations

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.places import ROOT
from partialkd.config.load import load_config
from partialkd.world.world import World

SCRIPT = ROOT / "benchmarks" / "methods.py"
FILES = sorted((ROOT / "configs" / "methods").glob("*.toml"))
PHASES = ("teacher.train", "student")


@pytest.fixture(scope="module")
def methods() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    specification = importlib.util.spec_from_file_location("methods_benchmark", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    sys.path.remove(str(SCRIPT.parent))
    return module


def row(method: str, seed: int, score: float) -> dict[str, Any]:
    return {"method": method, "seed": seed, "accuracy": score, "auc": score, "tar_at_far": {"0.1": score}}


def test_the_list_is_of_the_files(methods: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--list"])
    methods.main()
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == "alone"
    assert sorted(listed) == [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_differ_in_what_makes_the_method_only(path: Path) -> None:
    config, alone = load_config(path), load_config(path.with_stem("alone"))
    assert config.run.name == path.stem
    lines = path.read_text().splitlines()
    assert lines[0] == f"# make train ARGS=configs/methods/{path.name}"
    assert "arXiv:" in "".join(lines[1:6])
    free = {"method", "terms", "optimizer"}
    assert config.student.model_dump(exclude=free) == alone.student.model_dump(exclude=free)
    assert config.data.model_dump(exclude={"sampler", "images_per_identity"}) == alone.data.model_dump(
        exclude={"sampler", "images_per_identity"}
    )
    assert config.evaluate == alone.evaluate
    teachers = {load_config(one).teacher.train for one in FILES} - {None}
    assert len({teacher.model_dump_json() for teacher in teachers if teacher}) == 1
    assert (config.teacher.source == "none") == (config.student.teacher_use == "none")


def test_differences_are_paired_by_seed(methods: ModuleType) -> None:
    rows = [row("alone", seed, score) for seed, score in enumerate((0.5, 0.7, 0.9))]
    rows += [row("better", seed, score) for seed, score in ((2, 0.93), (0, 0.51), (1, 0.72))]
    rows += [{"method": "worse", "seed": 0, "error": "no"}]
    found = methods.compared(rows)
    assert found.keys() == {"alone", "better"}
    assert found["better"]["accuracy"]["mean"] == pytest.approx(0.72)
    assert found["better"]["accuracy"]["difference"]["mean"] == pytest.approx(0.02)
    assert found["better"]["accuracy"]["difference"]["half_width"] == pytest.approx(4.303 * 0.01 / 3**0.5)
    table = methods.table_of(rows).get_string()
    assert "+2.0 ± 2.5" in table


def test_the_page_has_the_table_of_the_kept_results(methods: ModuleType) -> None:
    kept = json.loads(methods.OUT.read_text())
    assert kept.keys() >= {"device", "torch", "python", "commit", "teacher"}
    assert {row["method"] for row in kept["rows"]} <= set(methods.names())
    assert set(methods.PUBLISHED) <= set(methods.names())
    page = (ROOT / "docs" / "methods.md").read_text()
    assert "\n".join(methods.markdown_of(kept["rows"])) in page


@pytest.mark.slow
def test_every_method_trains_and_is_not_trained_again(methods: ModuleType, tmp_path: Path) -> None:
    """Two steps of each, of the shipped files but for smaller data and networks, in one process."""
    small = [f"{phase}.{key}" for phase in PHASES for key in ("model.width=0.125", "max_steps=2", "global_batch=24")]
    small += [f"{phase}.schedule.warmup_steps=1" for phase in PHASES]
    drawn = {"identities": 12, "images_per_identity": 8, "held_out_identities": 4, "pairs": 20}
    small += [f"data.prepare.{key}={value}" for key, value in drawn.items()]
    small += [f"data.path={tmp_path / 'data'}", "evaluate.folds=2"]
    out = tmp_path / "out.json"
    args = Namespace(work=tmp_path / "work", out=out, overrides=small, seeds=1, methods=None)
    with World.start() as world:
        methods.measure(args, world)
        first = json.loads(out.read_text())
        methods.measure(Namespace(**{**vars(args), "methods": ["alone"]}), world)
    assert json.loads(out.read_text()) == first
    assert first.keys() >= {"device", "torch", "python", "commit", "teacher"}
    rows = first["rows"]
    assert [row.get("error") for row in rows] == [None] * len(rows)
    assert [(row["method"], row["seed"]) for row in rows] == [(name, 0) for name in methods.names()]
    assert {row["steps"] for row in rows} == {2}
    assert all(0 <= score <= 1 for row in rows for score in methods.scores_of(row).values())
