"""The report of a run, whatever has become of it: what is in it, and that nothing foreign is written as it is."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.html_pages import NASTY, checked
from helpers.places import ROOT
from helpers.run_folders import faces_bin, made_run, pairs
from partialkd.commands.report import main
from partialkd.errors import ConfigError, DataError
from partialkd.evaluate.kept_pairs import read_pairs, write_pairs
from partialkd.evaluate.pairs import score_pairs
from partialkd.evaluate.rates import share_above, strict_threshold
from partialkd.planner.devices import DEVICES, device_named
from partialkd.report import plots
from partialkd.report.page import Figure, Table, figure_html
from partialkd.report.run_files import read_run
from partialkd.report.run_report import report_html, write_report
from partialkd.report.scores_section import hardest, histogram_figure, roc_curve, roc_figure
from partialkd.report.training_section import step_times


@pytest.mark.slow
def test_a_finished_run_has_it_all(tmp_path: Path, draws: None) -> None:
    run = made_run(tmp_path)
    faces_bin(tmp_path / "data" / "faces.bin")
    (run / "logs").mkdir()
    (run / "logs" / "rank_0.log").write_text("2026-01-01 00:00:00 warning: look\n2026-01-01 00:00:01 not this\n")
    page = checked(write_report(run).read_text(encoding="utf-8"))
    for said in (
        "This run is finished", "ROC: faces", "Cosines of student: faces", "Loss", "Learning rate", "alpha′",
        "Gradient norm", "Where the time of a step went", "sum against the step", "of the device (MFU)",
        "planned for a rank", "Hardest pairs: faces", "warning: look", "student.method.name", "Starts of this run",
    ):  # fmt: skip
        assert said in page.text, said
    assert "not this" not in page.text
    assert len(page.named("img")) == 24  # six pairs of each kind
    assert len(page.named("svg")) == 4 + 1 + 6 + 1  # ROC and histograms, accuracy, curves, time
    assert (run / "report.html").stat().st_size < 1_000_000


def test_parts_are_compared_with_the_step_measured_apart(tmp_path: Path) -> None:
    student, alone = step_times(read_run(made_run(tmp_path)))
    assert (student.phase, alone.phase) == ("student", "alone")
    assert student.total == pytest.approx(0.1)
    assert student.step == pytest.approx(0.1)  # 24 images a step, 240 a second
    assert student.apart == pytest.approx(0.0, abs=1e-9)
    assert student.memory == 2e9


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    """No result yet, and the last line is being written."""
    run = made_run(tmp_path, finished=False)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"phase": "student", "st')
    page = checked(report_html(read_run(run)))
    assert "its last logged step is 40 of alone" in page.text
    assert "ROC: faces" in page.text  # of what is scored by now


def test_a_finished_run_that_is_made_longer(tmp_path: Path) -> None:
    """Its result is there, and of before."""
    run = made_run(tmp_path, steps=2)
    result = json.loads((run / "result.json").read_text())
    for ended, said in (("2026-01-02", "This run is finished"), ("2025-12-31", "was begun again since")):
        (run / "result.json").write_text(json.dumps(result | {"ended": f"{ended}T00:00:00+00:00"}))
        assert said in report_html(read_run(run))  # it was started on January 1st


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_has_hardly_begun(steps: int, tmp_path: Path) -> None:
    run = made_run(tmp_path, networks={"student": 1.0}, steps=steps, finished=False)
    checked(report_html(read_run(run)))


def test_a_bare_configuration_is_a_run(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    for path in sorted(run.rglob("*"), reverse=True):
        if path.name != "config.toml":
            path.rmdir() if path.is_dir() else path.unlink()
    assert "has not logged a step yet" in checked(report_html(read_run(run))).text


def test_numbers_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    run = made_run(tmp_path, steps=3)
    text = (
        (run / "metrics.jsonl")
        .read_text()
        .replace('"loss": 5.0', '"loss": null')
        .replace('"alpha": 0.5', '"alpha": NaN')
    )
    (run / "metrics.jsonl").write_text(text.replace('"grad_norm": 5.0', '"grad_norm": Infinity'))
    page = checked(report_html(read_run(run)))
    assert "not finite" in page.text


def test_numbers_that_cannot_be(tmp_path: Path, draws: None) -> None:
    """Too large to be drawn, no ranks, no time: the rest of the page stands."""
    run = made_run(tmp_path, steps=3)
    text = (run / "metrics.jsonl").read_text()
    text = text.replace('"loss": 5.0', '"loss": 1e308').replace('"grad_norm": 5.0', f'"grad_norm": {"9" * 400}')
    (run / "metrics.jsonl").write_text(text)
    for size in (0, -1):
        start = {"world_size": size, "identities": 12, "device": None, "product_flops": "fast"}
        (run / "starts.json").write_text(json.dumps({"starts": [start]}))
        result = json.loads((run / "result.json").read_text())
        wrong = {"seconds": float("nan") if size else "long", "world_size": size}
        (run / "result.json").write_text(json.dumps(result | wrong))
        page = checked(report_html(read_run(run)))
        assert "not finite" in page.text
        assert "time of all starts" not in page.text


def test_several_starts_on_other_numbers_of_ranks(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    starts = json.loads((run / "starts.json").read_text())["starts"]
    (run / "starts.json").write_text(json.dumps({"starts": [*starts, {**starts[0], "world_size": 5}]}))
    page = checked(report_html(read_run(run)))  # 24 images are not to be shared by 5: no failure
    assert len(re.findall("2026-01-01T00:00:00", page.text)) == 2


def test_a_configuration_of_another_version(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("[run]", "[run]\nwarp = 9"))
    page = checked(report_html(read_run(run)))
    assert "Not read as a configuration of this version" in page.text
    assert "run.warp" in page.text


def test_hundreds_of_sets(tmp_path: Path) -> None:
    sets = tuple(f"set{number:03d}" for number in range(200))
    run = made_run(tmp_path, networks={"student": 1.0}, sets=("faces",), steps=2)
    result = json.loads((run / "result.json").read_text())
    result["sets"] = dict.fromkeys(sets, result["sets"]["faces"])
    (run / "result.json").write_text(json.dumps(result))
    write_pairs(run, "student", {name: pairs(1.0) for name in sets[:8]})
    page = checked(report_html(read_run(run)))
    assert "set199" in page.text
    assert "Figures are of the first 6 sets" in page.text


def test_foreign_names_are_escaped(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    (run / "config.toml").write_text((run / "config.toml").read_text().replace('"trial"', json.dumps(NASTY)))
    for path in (run / "result.json", run / "metrics.jsonl"):
        escaped = json.dumps(NASTY)[1:-1]
        path.write_text(path.read_text().replace('"faces"', f'"{escaped}"').replace('"alone"', f'"{escaped}"'))
    (run / "logs").mkdir()
    (run / "logs" / "rank_0.log").write_text(f"2026-01-01 00:00:00 warning: {NASTY}\n")
    text = report_html(read_run(run))
    assert "<script>alert" not in text
    assert "\u202e" not in text
    assert "alert(1)" in checked(text).text


def test_without_what_draws_the_numbers_stand_alone(tmp_path: Path) -> None:
    page = checked(report_html(read_run(made_run(tmp_path))))
    assert not page.named("svg")
    assert "pip install 'partialkd[report]'" in page.text
    assert "Loss at some steps" in page.text


def test_colours_are_those_of_the_page(draws: None) -> None:
    """No colour is left that would not follow light and dark."""
    text = figure_html(roc_figure("faces", {"student": pairs(1.0)})) + figure_html(
        histogram_figure("faces", NASTY, pairs(1.0), 4)
    )
    drawings = "".join(re.findall(r"<svg .*?</svg>", text, re.DOTALL))
    assert "var(--s0)" in drawings
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawings)) <= {"#000000"}  # of clips and hatches that nobody sees
    assert 'id="figure' not in drawings


# --------------------------------------------------------------------------------------------------- what is wrong


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, said in (("none", "no such folder"), (".", "not a run's folder")):
        with pytest.raises(ConfigError, match=said):
            read_run(tmp_path / place)
    monkeyed = sys.argv
    sys.argv = ["launch/report.py", str(tmp_path)]
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "launch" / "report.py"), run_name="__main__")
    finally:
        sys.argv = monkeyed
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "neither config.toml nor metrics.jsonl" in line
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metrics.jsonl", '{"phase": "student", "step": 1, "loss": 1}\nwords\n', r"metrics\.jsonl, line 2: not a line"),
        ("metrics.jsonl", '{"phase": 3, "step": 1}\n', "line 1: not a line of metrics.*phase must be text"),
        ("metrics.jsonl", '{"phase": "x", "step": 1, "loss": "a"}\n', "line 1: not a line.*loss must be a number"),
        ("metrics.jsonl", '{"phase": "x", "step": %s, "loss": 1}\n' % ("9" * 30), "line 1: .*step a whole number"),
        ("result.json", '{"sets": {"faces": {}}}', "must hold scores by set and network"),
        ("metrics.jsonl", "[" * 100_000 + "\n", "line 1: not a line of metrics"),
        ("result.json", "[]", r"result\.json: not JSON of a run: it holds a list"),
        ("result.json", '{"sets": {"faces": {"student": {"auc": 1}}}}', r"result\.json: not the scores of a network"),
        ("result.json", '{"seed": 1}', "must hold scores by set and network"),
        ("starts.json", '{"starts": 3}', r"starts\.json: must hold a list of starts"),
        ("scores/student/faces.safetensors", "words", r"faces\.safetensors: not a file of scored pairs"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_in_a_line(
    name: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path, steps=2)
    (run / name).write_text(text)
    with pytest.raises(DataError, match=said):
        report_html(read_run(run))
    assert main([str(run)]) == 1
    assert not (run / "report.html").exists()


def test_kept_pairs_come_back(tmp_path: Path) -> None:
    kept = pairs(1.5)
    write_pairs(tmp_path, "student", {"faces": kept})
    read = read_pairs(tmp_path / "scores" / "student" / "faces.safetensors")
    for one, other in ((kept.cosines, read.cosines), (kept.same, read.same), (kept.people.first, read.people.first)):
        np.testing.assert_array_equal(one, other)


# --------------------------------------------------------------------------------------------------- its numbers


def test_a_curve_is_that_of_the_scores() -> None:
    kept = pairs(2.0, count=400)
    curve = roc_curve(kept, "student")
    genuine, impostor = np.sort(kept.cosines[kept.same]), np.sort(kept.cosines[~kept.same])
    assert curve.y.tolist() == [share_above(genuine, strict_threshold(impostor, far)) for far in curve.x]
    assert curve.band is not None
    scores = score_pairs(kept.cosines, kept.same, 4, [curve.band[0][5]], kept.people)
    (limits,) = scores.interval["tar_at_far"].values()
    assert (curve.band[1][5], curve.band[2][5]) == pytest.approx(limits)
    assert (np.diff(curve.y) >= 0).all()


def test_the_hardest_are_the_hardest() -> None:
    kept = pairs(2.0)
    genuine, impostor = hardest(kept, 3)
    assert kept.cosines[genuine].tolist() == sorted(kept.cosines[kept.same])[:3]
    assert kept.cosines[impostor].tolist() == sorted(kept.cosines[~kept.same], reverse=True)[:3]


def test_long_curves_are_thinned_with_their_gaps() -> None:
    x, y = np.arange(2000.0), np.ones(2000)
    y[:4], y[100] = np.nan, np.inf
    xs, ys = plots.thinned(x, y, 500)
    assert len(xs) == len(ys) == 500
    assert np.isnan(ys[0])
    assert (ys[1:] == 1).all()


def test_an_axis_can_be_read(draws: None) -> None:
    """Numbers near each other are not told as a difference to another; one power of ten is no logarithmic axis."""
    x, near = np.arange(3.0), plots.Series("student", np.arange(3.0), np.array([0.09999, 0.099992, 0.099994]))
    drawing = plots.drawn(lambda axes: plots.lines(axes, [near], "step", "lr"), "near")
    assert "student" in drawing  # also a single line says whose it is
    assert "0.09999" in drawing
    assert "e-2" not in drawing
    scales = []
    for highest in (12.0, 900.0):
        one = plots.Series("student", x, np.array([2.0, 3.0, highest]))
        with plots.drawing() as (_, axes):
            plots.lines(axes, [one], "step", "norm", log_y=True)
            scales.append(axes.get_yscale())
    assert scales == ["linear", "log"]


def test_drivers_names_of_devices() -> None:
    assert device_named("NVIDIA H100 80GB HBM3") is DEVICES["h100-80"]
    assert device_named("NVIDIA A100-SXM4-40GB") is DEVICES["a100-40"]
    assert device_named("NVIDIA GeForce RTX 4090") is DEVICES["rtx4090"]
    assert device_named("CPU, 2 cores") is None


def test_a_figure_says_in_words_what_it_draws() -> None:
    html = figure_html(Figure("T", '<svg viewBox="0 0 1 1"></svg>', 'a "quoted" thing', Table("c", ["a"], [["b"]])))
    assert 'role="img" aria-label="a &quot;quoted&quot; thing"' in html
