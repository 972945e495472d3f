"""Scores by templates beside those of pairs: the file that an evaluation wrote, columns, what does not belong there."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch

from helpers.html_pages import checked
from helpers.run_folders import made_run
from partialkd.commands.compare import main
from partialkd.commands.evaluate import main as evaluate
from partialkd.config import ModelConfig
from partialkd.data.images.encode import encode_jpeg
from partialkd.errors import ConfigError, DataError
from partialkd.evaluate.intervals import Impostors, People
from partialkd.evaluate.made_templates import make_templates
from partialkd.evaluate.template_protocol import FARS, _verified
from partialkd.models.build import build_model
from partialkd.models.saved import save_model
from partialkd.report.comparison import Column, compare, difference, read_runs
from partialkd.report.comparison_page import comparison_html, comparison_json
from partialkd.report.paper import accuracy_csv, differences_csv, latex, markdown
from partialkd.report.template_scores import read_template_scores

IMPOSTORS = 20_000
FILE = "model.safetensors"


def evaluation(model: str, seed: int, separation: float = 2.0) -> dict[str, Any]:
    """What `evaluate --templates IJBC --json` writes, of scores drawn at random."""
    draw = np.random.default_rng(seed)
    genuine, others = draw.normal(size=400) + separation, draw.normal(size=IMPOSTORS)
    strangers = Impostors(np.sort(others), People(np.arange(IMPOSTORS), np.arange(IMPOSTORS) + IMPOSTORS))
    found = _verified(genuine, People.single(np.arange(400)), strangers, FARS)
    return {"model": model, "sets": {}, "templates": {"IJBC": {FILE: {"N1D1F1": {"verification": found}}}}}


def judged(run: Path, seed: int, separation: float = 2.0, network: str = "student") -> Path:
    path = run / f"evaluation_{network}.json"
    path.write_text(json.dumps(evaluation(f"runs/{run.name}/{network}/model.safetensors", seed, separation)))
    return path


def rates(path: Path, far: str) -> float:
    tree = json.loads(path.read_text())
    return float(tree["templates"]["IJBC"][FILE]["N1D1F1"]["verification"]["tar_at_far"][far]["tar_published"])


def test_templates_have_columns_in_the_papers_place(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, f"arc{seed}", seed, sets=("own", "lfw"), steps=2) for seed in range(2)]
    runs += [
        made_run(tmp_path, f"cos{seed}", seed, sets=("own", "lfw"), steps=2, kind="cos", margin=0.2)
        for seed in range(2)
    ]
    files = [judged(run, seed, 2.0 + seed % 3) for seed, run in enumerate(runs)]
    found = compare(read_runs(runs))
    assert [column.title for column in found.columns] == ["lfw", "IJBC TAR@0.0001", "IJBC TAR@1e-05", "own"]
    base, other = found.recipes
    at = Column("IJBC", 1e-4)
    values = [[rates(path, "0.0001") for path in files[start : start + 2]] for start in (0, 2)]
    assert at.values(base, "student") == values[0]
    assert at.values(base, "teacher") == []
    best = found.best(at)
    assert best == ((base if mean(values[0]) > mean(values[1]) else other), "student")
    apart = difference(found, other, "student", at)
    assert apart is not None
    assert apart.mean == pytest.approx(mean(values[1]) - mean(values[0]))
    assert (apart.by_identity, apart.seeds) == (None, 2)
    assert apart.by_seed is not None

    head, *rows = csv.reader(accuracy_csv(found).splitlines())
    assert head[3:7] == ["LFW", "LFW std", "IJB-C TAR@0.0001", "IJB-C TAR@0.0001 std"]
    row = next(row for row in rows if row[:2] == [other.name, "student"])
    assert row[5:7] == [f"{100 * mean(values[1]):.4f}", f"{100 * stdev(values[1]):.4f}"]
    assert "LFW & IJB-C TAR@0.0001 & IJB-C TAR@1e-05 & own" in latex(found)
    assert "IJB-C TAR@0.0001" in markdown(found)
    assert "IJB-C TAR@1e-05" in differences_csv(found)
    assert "IJBC TAR@0.0001" in checked(comparison_html(found)).text
    scores = [one for one in comparison_json(found)["scores"] if one.get("far") == 1e-4]
    assert [one["tar_published"] for one in scores] == [mean(one) for one in values]


def test_one_run_has_the_interval_of_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path, "one", steps=2)
    tree = json.loads(judged(run, 0).read_text())
    low, high = tree["templates"]["IJBC"][FILE]["N1D1F1"]["verification"]["tar_at_far"]["0.0001"]["interval_published"]
    assert main([str(run)]) == 0
    assert f"[{100 * low:.1f}, {100 * high:.1f}]" in capsys.readouterr().out


@pytest.mark.usefixtures("own_world")
def test_what_the_evaluation_writes_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command itself, on a made set, with a network that has learned nothing."""
    rng = np.random.default_rng(2)
    for person in range(5):
        (tmp_path / "faces" / f"{person}").mkdir(parents=True)
        base = rng.uniform(0, 255, (7, 7, 3))
        for image in range(6):
            coarse = np.clip(base + rng.normal(0, 25, base.shape), 0, 255)
            pixels = np.kron(coarse, np.ones((16, 16, 1))).astype(np.uint8)
            (tmp_path / "faces" / f"{person}" / f"{image}.jpg").write_bytes(encode_jpeg(pixels))
    make_templates(tmp_path / "faces", tmp_path / "IJBC")
    run = made_run(tmp_path, "one", steps=2)
    config = ModelConfig(name="mobilefacenet", embedding_dim=16, width=0.25)
    torch.manual_seed(0)
    (run / "student").mkdir(exist_ok=True)
    save_model(run / "student" / FILE, build_model(config, 112), config, 112)
    numbers = run / "evaluation_ijbc.json"
    model = str(run / "student" / FILE)
    assert evaluate([model, "--templates", str(tmp_path / "IJBC"), "--device", "cpu", "--json", str(numbers)]) == 0
    (scores,) = read_template_scores(run)["IJBC"].values()
    assert scores.published[1e-4] == rates(numbers, "0.0001")
    assert main([str(run)]) == 0
    assert "IJBC TAR@0.0001" in capsys.readouterr().out


def test_a_checkpoint_is_its_phases(tmp_path: Path) -> None:
    run = made_run(tmp_path, "one", steps=2)
    (run / "evaluation.json").write_text(json.dumps(evaluation("/x/one/alone/checkpoints/step_00000002", 0)))
    assert list(read_template_scores(run)["IJBC"]) == ["alone"]


def test_an_evaluation_without_templates_adds_nothing(tmp_path: Path) -> None:
    run = made_run(tmp_path, "one", steps=2)
    (run / "evaluation.json").write_text(json.dumps({"model": "other.onnx", "sets": {}}))
    assert read_template_scores(run) == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree.update(model="runs/other/student/model.safetensors"), "which is no network of the run one"),
        (lambda tree: tree.update(model=3), "it names no model"),
        (lambda tree: tree.update(templates=[]), "templates must be a table"),
        (lambda tree: tree["templates"]["IJBC"].clear(), "not the JSON of an evaluation by templates"),
        (
            lambda tree: tree["templates"]["IJBC"][FILE]["N1D1F1"]["verification"]["tar_at_far"].update({"0.0001": 1}),
            "not the JSON of an evaluation by templates",
        ),
    ],
)
def test_what_is_no_such_file_is_said(
    tmp_path: Path, change: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path, "one", steps=2)
    tree = evaluation("runs/one/student/model.safetensors", 0)
    change(tree)
    (run / "evaluation_ijbc.json").write_text(json.dumps(tree))
    with pytest.raises((ConfigError, DataError), match=said):
        read_template_scores(run)
    assert main([str(run)]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "evaluation_ijbc.json" in line


def test_text_that_is_no_json(tmp_path: Path) -> None:
    run = made_run(tmp_path, "one", steps=2)
    for text in (b"{", b"\xff\xfe", b"[]"):
        (run / "evaluation.json").write_bytes(text)
        with pytest.raises(DataError, match=r"evaluation\.json: not the JSON of an evaluation"):
            read_template_scores(run)


def test_sets_of_other_pairs_and_two_of_one_network_are_refused(tmp_path: Path) -> None:
    one, other = made_run(tmp_path, "one", steps=2), made_run(tmp_path, "two", 1, steps=2)
    judged(one, 0)
    path = judged(other, 0)
    tree = json.loads(path.read_text())
    tree["templates"]["IJBC"][FILE]["N1D1F1"]["verification"]["genuine"] = 7
    path.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match="'IJBC' is not of the same pairs of templates"):
        compare(read_runs([one, other]))
    (one / "evaluation_again.json").write_text(json.dumps(evaluation("runs/one/student/model.safetensors", 1)))
    with pytest.raises(ConfigError, match="was scored on 'IJBC' in another file"):
        read_template_scores(one)
