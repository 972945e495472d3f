"""Seconds of all starts of a run, whatever has become of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from partialkd.run import times as module
from partialkd.run.times import Times, earlier_starts, summed


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def start(folder: Path, writes: bool = True) -> Times:
    return Times(folder, earlier_starts(folder), writes, module.time.perf_counter())


def interrupted(one: Times, clock: Clock) -> None:
    with one.phase("student"):
        clock.now += 20
        raise KeyboardInterrupt


def test_starts_are_summed(tmp_path: Path, clock: Clock) -> None:
    first = start(tmp_path)
    clock.now += 5
    with first.phase("teacher"):
        clock.now += 10
        first.move("teacher", "teacher scoring", 4.0)
    with pytest.raises(KeyboardInterrupt):
        interrupted(first, clock)
    second = start(tmp_path)
    with second.phase("student"):
        clock.now += 7
        second.note()  # as at a checkpoint; then it is killed
        clock.now += 100
        third = start(tmp_path)
    clock.now += 1
    starts = third.all_starts()
    assert [one["seconds"] for one in starts] == [35, 7, 1]
    assert starts[0]["phase_seconds"] == {"teacher": 6, "teacher scoring": 4, "student": 20}
    assert summed(starts) == {"seconds": 43, "phase_seconds": {"teacher": 6, "teacher scoring": 4, "student": 27}}


def test_only_rank_0_writes(tmp_path: Path, clock: Clock) -> None:
    with start(tmp_path, writes=False).phase("student"):
        clock.now += 1
    assert not list(tmp_path.iterdir())


def test_the_result_of_an_earlier_version_is_one_start(tmp_path: Path) -> None:
    said = {"name": "trial", "seconds": 12.5, "phase_seconds": {"student": 11.0}, "sets": {}}
    (tmp_path / "result.json").write_text(json.dumps(said))
    assert earlier_starts(tmp_path) == [{"seconds": 12.5, "phase_seconds": {"student": 11.0}}]


DAMAGED = ["", "{", "[]", '{"starts": 3}', '{"starts": [{"seconds": "x"}]}', "\xff", "[" * 100_000]
DAMAGED += ['{"seconds": 1e999, "phase_seconds": {}}', '{"seconds": 1, "phase_seconds": {"student": NaN}}']


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_ends_no_run(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "times.json").write_text(content, encoding="latin-1")
    with caplog.at_level(logging.WARNING):
        assert earlier_starts(tmp_path) == []
    assert f"{tmp_path / 'times.json'}: cannot be read, earlier starts are not counted" in caplog.text


def test_a_file_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = start(tmp_path / "gone")
    with caplog.at_level(logging.WARNING):
        one.note()
    assert "times.json: not written: " in caplog.text
