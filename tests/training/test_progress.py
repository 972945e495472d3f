"""What a run says of itself: metrics.jsonl over resumes, log lines, the bar, TensorBoard; files that appear whole."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from partialkd.config import RunConfig
from partialkd.errors import ConfigError, DataError
from partialkd.evaluate.pairs import PairScores
from partialkd.storage.atomic_files import replacing, write_json, write_text
from partialkd.training import outlets
from partialkd.training import progress as module
from partialkd.training.progress import Progress, Throughput
from partialkd.world import passes
from partialkd.world.messages import begin
from partialkd.world.world import World

QUIET, BOARD = (RunConfig(name="trial", tensorboard=tensorboard) for tensorboard in (False, True))


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def _run(folder: Path, steps: range, phase: str = "student", loss: float = 1.0, resume_step: int = 0) -> None:
    with Progress(folder, phase, 100, World(), QUIET, resume_step=resume_step) as progress:
        for step in steps:
            progress.log(step, step // 10, loss, 0.1, 640.0, {"alpha": 0.5})


def test_one_object_a_logged_step(tmp_path: Path) -> None:
    with Progress(tmp_path / "run", "student", 100, World(), QUIET) as progress:
        progress.log(50, 2, 3.25, 0.1, 640.0, {"alpha": 0.87, "seen": 400})
    (line,) = _lines(tmp_path / "run")
    assert abs(datetime.fromisoformat(line.pop("time")) - datetime.now(UTC)) < timedelta(minutes=10)
    assert [line] == [
        {
            "phase": "student", "step": 50, "epoch": 2, "loss": 3.25, "lr": 0.1, "images_per_s": 640.0,
            "alpha": 0.87, "seen": 400.0,
        },
    ]  # fmt: skip


def test_scores_are_lines_of_their_own_and_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    score = PairScores(
        accuracy=0.75, accuracy_std=0.0, auc=0.8, tar_at_far={"0.1": 0.5, "0.001": 0.2}, threshold=0.3, pairs=20,
        interval={"accuracy": [0.7, 0.8]}, too_few_impostors={"0.001": True},
    )  # fmt: skip
    speed, going = Throughput(64), passes.Pass("student", 100)
    with Progress(tmp_path, "student", 100, World(), BOARD) as progress:
        now[0] += 10.0
        progress.log(10, 0, 1.0, 0.1, speed.since_last(10), {})
        now[0] += 30.0
        speed.leave_out(30.0)
        going.leave_out(30.0)
        progress.scored(10, 0, {"faces": score}, 30.0)
        now[0] += 10.0
        progress.log(20, 1, 1.0, 0.1, speed.since_last(20), {})
    going.add(20)
    assert going.seconds_left() == 80.0
    lines = _lines(tmp_path)
    assert [line.get("images_per_s") for line in lines] == [64.0, None, 64.0]
    assert {key: lines[1][key] for key in ("phase", "step", "accuracy/faces", "auc/faces", "scoring_s")} == {
        "phase": "student", "step": 10, "accuracy/faces": 0.75, "auc/faces": 0.8, "scoring_s": 30.0,
    }  # fmt: skip
    ends = {key: lines[1][key] for key in ("accuracy_low/faces", "accuracy_high/faces", "tar@0.1/faces")}
    assert ends == {"accuracy_low/faces": 0.7, "accuracy_high/faces": 0.8, "tar@0.1/faces": 0.5}
    assert "tar@0.001/faces" not in lines[1]
    assert {"accuracy/faces", "auc/faces"} <= set(_events(tmp_path).Tags()["scalars"])


def test_lines_are_in_the_file_at_once(tmp_path: Path) -> None:
    with Progress(tmp_path, "student", 100, World(), QUIET) as progress:
        progress.log(1, 0, 1.0, 0.1, 1.0, {})
        assert len(_lines(tmp_path)) == 1


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 2), loss=float("nan"))
    assert _lines(tmp_path)[0]["loss"] is None


def test_resume_leaves_no_step_twice(tmp_path: Path) -> None:
    _run(tmp_path, range(10, 60, 10), phase="teacher", loss=9.0)
    _run(tmp_path, range(10, 60, 10), loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"phase": "student", "st')  # killed while writing
    _run(tmp_path, range(40, 60, 10), loss=2.0, resume_step=30)
    got = [(line["phase"], line["step"], line["loss"]) for line in _lines(tmp_path)]
    assert got == [
        *(("teacher", step, 9.0) for step in range(10, 60, 10)),
        *(("student", step, 1.0) for step in (10, 20, 30)),
        *(("student", step, 2.0) for step in (40, 50)),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_phase_that_starts_afresh_replaces_its_lines(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 4), phase="teacher")
    _run(tmp_path, range(1, 4))
    _run(tmp_path, range(1, 2), loss=2.0)
    got = [(line["phase"], line["step"], line["loss"]) for line in _lines(tmp_path)]
    assert got == [("teacher", 1, 1.0), ("teacher", 2, 1.0), ("teacher", 3, 1.0), ("student", 1, 2.0)]


@pytest.mark.parametrize("line", ["not ours", "[" * 100_000], ids=["words", "too deep"])
def test_a_foreign_file_is_not_touched(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"phase": "student", "step": 1}}\n{line}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl, line 2: not a line of metrics"):
        _run(tmp_path, range(1))
    assert (tmp_path / "metrics.jsonl").read_text().endswith(f"{line}\n")


def test_other_ranks_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(tmp_path / "run", "student", 10, World(rank=1, size=2), BOARD) as progress:
        progress.log(1, 0, 1.0, 0.1, 1.0, {})
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_values_cannot_replace_the_steps_own(tmp_path: Path) -> None:
    with (
        Progress(tmp_path, "student", 10, World(), QUIET) as progress,
        pytest.raises(ValueError, match="'lr'"),
    ):
        progress.log(1, 0, 1.0, 0.1, 1.0, {"lr": 2.0})


class _Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(passes.time, "monotonic", lambda: self.now)


def test_plain_lines_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed at 20 of 100; 10 steps took 90 s, so 70 take 630 s."""
    begin()
    clock = _Clock(monkeypatch)
    with Progress(tmp_path, "student", 100, World(), QUIET, resume_step=20) as progress:
        clock.now += 90.0
        progress.log(30, 1, 3.25, 0.1, 640.4, {"alpha": 0.871})
        (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d student step 30/100 epoch 1 "
        r"loss 3.25 lr 0.1 alpha 0.871 640 images/s left 0:10:30",
        line,
    )


class _FullDisk(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_a_log_and_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The metrics stop where the disk was full, TensorBoard goes on; it is said once."""
    begin()
    with Progress(tmp_path, "student", 100, World(), BOARD) as progress:
        progress.log(1, 0, 1.0, 0.1, 1.0, {})
        (metrics,) = [outlet for outlet in progress._outlets if isinstance(outlet, outlets.MetricsFile)]
        metrics.stream.close()
        metrics.stream = _FullDisk()
        for step in (2, 3):
            progress.log(step, 0, 1.0, 0.1, 1.0, {})
    assert [line["step"] for line in _lines(tmp_path)] == [1]
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "metrics" in line]
    assert said.endswith(
        f"warning: {tmp_path / 'metrics.jsonl'}: cannot be written to any more (No space left on device); "
        "the run goes on without it"
    )
    assert [event.step for event in _events(tmp_path).Scalars("loss")] == [1, 2, 3]


def _events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / "student"))
    events.Reload()
    return events


def test_tensorboard_holds_the_same_numbers(tmp_path: Path) -> None:
    for resume_step, loss in ((0, 1.0), (2, 5.0)):
        with Progress(tmp_path, "student", 10, World(), BOARD, resume_step=resume_step) as progress:
            for step in range(resume_step + 1, 5):
                progress.log(step, 0, loss, 0.1, 1.0, {"alpha": 0.25})
    events = _events(tmp_path)
    assert set(events.Tags()["scalars"]) == {"loss", "lr", "images_per_s", "alpha"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 5.0), (4, 5.0)]


def test_tensorboard_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"run.tensorboard: needs the package tensorboard"):
        Progress(tmp_path, "student", 10, World(), BOARD)


def test_throughput_is_measured_since_the_last_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)
    meter = Throughput(global_batch=64, step=100)
    clock.now += 10.0
    assert meter.since_last(150) == pytest.approx(50 * 64 / 10)
    clock.now += 4.0
    assert meter.since_last(152) == pytest.approx(2 * 64 / 4)


# -------------------------------------------------------------------------------------------------- files


def _write_half(path: Path) -> None:
    with replacing(path) as (stream,):
        stream.write(b"half")
        stream.flush()
        assert len(os.listdir(path.parent)) == 2
        raise RuntimeError("stop")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"b": [1, 2.5], "a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "b": [\n    1,\n    2.5\n  ],\n  "a": "é"\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("inf")})
    with pytest.raises(RuntimeError, match="stop"):
        _write_half(path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": [1, 2.5], "a": "é"}
    assert os.listdir(tmp_path) == ["result.json"]
    write_text(path, "new")
    assert path.read_text() == "new"
