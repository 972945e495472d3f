"""Runs side by side: recipes and seeds, paired intervals, what differs, tables for papers, what cannot be compared."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from helpers.html_pages import checked
from helpers.run_folders import made_run, pairs
from partialkd.commands.compare import main
from partialkd.errors import ConfigError
from partialkd.evaluate.kept_pairs import write_pairs
from partialkd.evaluate.pairs import fold_accuracies, right_pairs
from partialkd.report import comparison_page
from partialkd.report.comparison import Column, compare, difference, in_paper_order, read_runs, t_interval
from partialkd.report.comparison_page import comparison_html, comparison_json, drawn_networks, drawn_runs, phases_shown
from partialkd.report.paper import accuracy_csv, latex, markdown

LFW = Column("lfw")


def recipes(folder: Path, seeds: int = 3) -> list[Path]:
    sets = ("own", "agedb_30", "lfw")
    return [
        *(made_run(folder, f"arc{seed}", seed, sets=sets, steps=3) for seed in range(seeds)),
        *(
            made_run(folder, f"cos{seed}", seed, {"student": 1.5, "alone": 1.0}, sets, steps=3, kind="cos", margin=0.2)
            for seed in range(seeds)
        ),
    ]  # fmt: skip


def test_seeds_of_a_recipe_and_what_differs(tmp_path: Path) -> None:
    found = compare(read_runs(recipes(tmp_path)))
    assert [[run.name for run in recipe.runs] for recipe in found.recipes] == [
        ["arc0", "arc1", "arc2"], ["cos0", "cos1", "cos2"],
    ]  # fmt: skip
    assert found.settings == {"student.method.kind": ['"arc"', '"cos"'], "student.method.margin": ["0.45", "0.2"]}
    assert found.sets == ["lfw", "agedb_30", "own"]
    best = found.best(LFW)
    assert best is not None
    assert (best[0].name, best[1]) == ("arc0 and 2 more seeds", "student")  # who learns is compared, not the teacher


def test_a_seed_run_again_is_no_further_seed(tmp_path: Path) -> None:
    """A copy of a run, or the same run of other code: an interval over seeds must not shrink by it."""
    run = made_run(tmp_path, steps=2)
    copy = tmp_path / "elsewhere" / run.name
    shutil.copytree(run, copy)
    found = compare(read_runs([run, copy, made_run(tmp_path, "other", 1, steps=2)]))
    assert [[one.seed for one in recipe.runs] for recipe in found.recipes] == [[0, 1], [0]]
    one = difference(found, found.recipes[1], "student", Column("faces"))
    assert one is not None
    assert (one.mean, one.by_seed, one.seeds) == (0.0, None, 1)
    page = checked(comparison_html(found))
    assert str(copy) in page.text  # both have one name
    assert "the same seeds" in page.text


def test_what_a_run_tells_is_no_part_of_its_recipe(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, name, seed, steps=2) for seed, name in enumerate(("one", "two"))]
    path = runs[0] / "config.toml"
    path.write_text(path.read_text().replace("[run]", "[run]\nprofile_steps = [1, 2]"))
    (recipe,) = compare(read_runs(runs)).recipes
    assert len(recipe.runs) == 2


def test_every_recipe_has_its_curves_before_any_has_two(tmp_path: Path) -> None:
    """Three recipes of three networks and three seeds: more than a figure has colours for."""
    runs = [
        made_run(tmp_path, f"{margin}-{seed}", seed, steps=2, margin=margin)
        for margin in (0.1, 0.2, 0.3) for seed in range(3)
    ]  # fmt: skip
    found = compare(read_runs(runs))
    students = [f"{margin}-0: student" for margin in (0.1, 0.2, 0.3)]
    assert list(drawn_networks(found, "faces"))[:3] == students
    assert [run.name for run in drawn_runs(found)][:4] == ["0.1-0", "0.2-0", "0.3-0", "0.1-1"]
    page = checked(comparison_html(found)).text
    assert "Curves of training are of 6 of 9 runs" in page
    assert "students first" in page


def test_earlier_students_of_a_chain_have_curves_and_phases_of_a_damaged_file_have_none(tmp_path: Path) -> None:
    path = made_run(tmp_path, steps=2) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    with path.open("a") as file:
        for phase in ("generation_1", "../../elsewhere", "generation_1/x"):
            file.writelines(json.dumps(line | {"phase": phase}) + "\n" for line in lines if line["phase"] == "student")
    assert phases_shown(compare(read_runs([path.parent]))) == ["student", "alone", "generation_1"]


def test_differences_are_paired_by_seed_and_by_identity(tmp_path: Path) -> None:
    found = compare(read_runs(recipes(tmp_path)))
    base, other = found.recipes
    one = difference(found, other, "student", LFW)
    assert one is not None
    apart = [
        a.scores["lfw"]["student"].accuracy - b.scores["lfw"]["student"].accuracy
        for a, b in zip(other.runs, base.runs, strict=True)
    ]
    assert one.mean == pytest.approx(mean(apart))
    assert one.by_seed == pytest.approx(t_interval(apart))
    assert one.seeds == 3
    limits = []
    for seed in range(3):
        right = []
        for far in (1.5, 2.0):
            kept = pairs(far, seed)
            right.append(right_pairs(kept.cosines, kept.same, fold_accuracies(kept.cosines, kept.same, 4)[1]))
        apart_pairs = right[0].astype(float) - right[1]
        half = kept.people.spread(apart_pairs - apart_pairs.mean()) / len(apart_pairs)
        limits.append((apart_pairs.mean() - half, apart_pairs.mean() + half))
    assert one.by_identity == pytest.approx(tuple(np.mean(limits, axis=0)))
    assert difference(found, base, "student", LFW) is None  # of itself
    within = difference(found, base, "alone", LFW)
    assert within is not None
    assert within.mean < 0


def test_students_interval() -> None:
    low, high = t_interval([0.1, 0.2, 0.3]) or (0, 0)
    assert (low + high) / 2 == pytest.approx(0.2)
    assert high - 0.2 == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert t_interval([0.1]) is None


def test_papers_order_whatever_the_files_are_called() -> None:
    sets = ["own", "ijbc", "CALFW", "agedb30", "cplfw", "IJB-B", "lfw", "cfp_fp"]
    assert in_paper_order(sets) == ["lfw", "cfp_fp", "agedb30", "CALFW", "cplfw", "IJB-B", "ijbc", "own"]


@pytest.mark.slow
def test_the_command_writes_what_is_asked_for(tmp_path: Path, draws: None, capsys: pytest.CaptureFixture[str]) -> None:
    runs = recipes(tmp_path, seeds=2)
    out, numbers, paper = tmp_path / "c.html", tmp_path / "c.json", tmp_path / "paper"
    assert main([*map(str, runs), "--out", str(out), "--json", str(numbers), "--paper", str(paper)]) == 0
    said = capsys.readouterr().out
    assert "Settings that differ" in said
    assert "(best)" in said
    page = checked(out.read_text(encoding="utf-8"))
    assert "ROC: lfw" in page.text
    assert "loss: student" in page.text
    found = json.loads(numbers.read_text())
    assert found["baseline"] == {"recipe": "arc0 and 1 more seed", "network": "student"}
    assert {one["network"] for one in found["differences"]} == {"student", "alone", "teacher"}
    names = {path.name for path in paper.iterdir()}
    assert {
        "accuracy.tex",
        "accuracy.md",
        "accuracy.csv",
        "differences.csv",
        "roc_lfw.pdf",
        "loss_student.png",
    } <= names
    assert (paper / "roc_lfw.pdf").read_bytes().startswith(b"%PDF")
    head, *rows = csv.reader((paper / "accuracy.csv").read_text().splitlines())
    assert head[:5] == ["run", "network", "seeds", "LFW", "LFW std"]
    assert head[5] == "AgeDB-30"
    assert len(rows) == 5


def test_names_are_escaped_for_each_format(tmp_path: Path) -> None:
    run, other = made_run(tmp_path, "one", steps=2), made_run(tmp_path, "two", steps=2, kind="cos", margin=0.2)
    for path, name in ((run, "=a_b & 50% <i>|"), (other, "c")):
        text = (path / "config.toml").read_text()
        (path / "config.toml").write_text(text.replace(f'"{path.name}"', json.dumps(name)))
    found = compare(read_runs([run, other]))
    assert r"=a\_b \& 50\% <i>|" in latex(found)
    assert r"=a\_b & 50% \<i\>\|" in markdown(found)
    assert "'=a_b & 50% <i>|" in accuracy_csv(found)
    assert "<i>" not in comparison_html(found)


def test_one_run_is_compared_within_itself(tmp_path: Path) -> None:
    found = compare(read_runs([made_run(tmp_path, steps=2)]))
    checked(comparison_html(found))
    assert {one["network"] for one in comparison_json(found)["differences"]} == {"alone", "teacher"}


def test_differences_that_are_not_drawn_are_said_to_be(
    tmp_path: Path, draws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compare(read_runs([made_run(tmp_path, steps=2)]))
    assert "the first" not in checked(comparison_html(found)).text
    monkeypatch.setattr(comparison_page, "MOST_DIFFERENCES", 1)
    assert "(the first 1 of 2)" in checked(comparison_html(found)).text


def test_runs_without_scores_have_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = made_run(tmp_path, "one", networks={"student": 1.0}, steps=2)
    for path in (one / "result.json", one / "scores" / "student" / "faces.safetensors"):
        path.unlink()
    page = checked(comparison_html(compare(read_runs([one]))))
    assert "Without scores: one." in page.text
    other = made_run(tmp_path, "other", steps=2, margin=0.1)
    assert main([str(one), str(other)]) == 0
    assert "Without scores: one." in capsys.readouterr().out


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = made_run(tmp_path, "one", steps=1), made_run(tmp_path, "two", sets=("lfw",), steps=1)
    same = made_run(tmp_path, "three", steps=1)
    write_pairs(same, "student", {"faces": pairs(1.0, count=80)})
    write_pairs(same, "alone", {"faces": pairs(1.0, count=80)})
    for runs, said in (
        ([one, other], "have no evaluation set in common"),
        ([one, same], "the set 'faces' is not of the same pairs"),
        ([one, one], "the same run as"),
        ([one, tmp_path], "not a run's folder"),
    ):
        with pytest.raises(ConfigError, match=said):
            compare(read_runs(runs))
        assert main([*map(str, runs), "--json", str(tmp_path / "c.json")]) == 2
    assert not (tmp_path / "c.json").exists()
    (tmp_path / "paper").mkdir()
    assert main([str(one), "--paper", str(tmp_path / "paper"), "--json", str(tmp_path / "c.json")]) == 1
    assert not (tmp_path / "c.json").exists()
    capsys.readouterr()
