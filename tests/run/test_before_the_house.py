"""A run begun before the modules moved is gone on with: checkpoints, teacher cache, teacher centres.

`before_the_house.tar.gz` is what commit 4999d97 left on two ranks (CPU, float32) of a run of 24 drawings: the teacher
finished, the student at step 3 of 6, and the teacher's own checkpoint of step 3. `LOSSES` is what that commit computed
when it went on from there. Another processor's rounding moves them by about 1e-6 (measured with SSE4.1 against AVX512).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from helpers.jobs import job
from helpers.old_run import unpack
from helpers.ranks import RankFailure, run
from partialkd import checkpoint
from partialkd.config.load import read_tree
from partialkd.world.world import World

LOSSES = {
    "student": {4: 6.98249626159668, 5: 7.900204181671143, 6: 7.624499320983887},
    "teacher": {4: 15.088747024536133, 5: 14.811311721801758, 6: 10.61867904663086},
}

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    unpack(tmp_path)
    return tmp_path


def gone_on(world: World, folder: Path, resume: str, epochs: float = 3, extend: bool = False) -> dict[str, float]:
    """Seconds of the phases that were trained; the paths of the configuration are relative to `folder`."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        settings = read_tree("runs/half/config.toml")  # without the keys that are new since then
        settings["student"]["epochs"] = float(epochs)
        return job(world, settings, resume, extend=extend)["starts"][-1]["phase_seconds"]
    finally:
        os.chdir(before)


def losses(folder: Path, phase: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "runs/half/metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["phase"] == phase and line["step"] > 3}


def written_at(folder: Path) -> dict[str, int]:
    """When each file of the teacher was written: one made again would be newer."""
    files = [path for name in ("teacher", "teacher_*") for path in (folder / "runs/half").glob(f"{name}/**/*")]
    return {str(path): path.stat().st_mtime_ns for path in files if path.is_file()}


def test_the_student_goes_on_with_the_cache_and_the_centres_that_are_there(folder: Path) -> None:
    before = written_at(folder)
    assert any("teacher_cache" in path for path in before)
    assert any("teacher_centres" in path for path in before)
    assert [list(seconds) for seconds in run(gone_on, 2, folder, "auto")] == [["student"]] * 2
    assert losses(folder, "student") == pytest.approx(LOSSES["student"], rel=1e-4)
    assert written_at(folder) == before


def test_trained_centres_go_on_with_their_moments(folder: Path) -> None:
    run(gone_on, 2, folder, "runs/half/teacher/checkpoints/step_000000003")
    assert losses(folder, "teacher") == pytest.approx(LOSSES["teacher"], rel=1e-4)


def extended(world: World, folder: Path) -> list[list[str]]:
    """The phases that were trained, in each of two extensions: of the unfinished student, and of the finished one."""
    return [list(gone_on(world, folder, "auto", epochs, extend=True)) for epochs in (4, 5)]


def test_a_run_is_extended(folder: Path) -> None:
    """By two steps each time; the learning rate follows the schedule of the new length."""
    with pytest.raises(RankFailure, match=r"student\.epochs: must be 3\.0, got 4\.0 \(with --extend a phase may be"):
        run(gone_on, 2, folder, "auto", 4)
    assert run(extended, 2, folder) == [[["student"], ["student"]]] * 2
    assert list(losses(folder, "student")) == [4, 5, 6, 7, 8, 9, 10]
    student = folder / "runs/half/student"
    assert (student / "model.safetensors.1").exists()  # of eight steps
    assert checkpoint.newest(student / "checkpoints") == student / "checkpoints" / "step_000000010"
    assert read_tree(folder / "runs/half/config.toml")["student"]["epochs"] == 5
