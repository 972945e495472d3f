"""A finished phase is believed if this job made it; moved files are the same files, others are not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.jobs import job
from helpers.ranks import run
from helpers.started_jobs import made, named, start
from partialkd.config.load import parse_config, save_config
from partialkd.config.resume import check_same_run
from partialkd.context import RunContext
from partialkd.errors import CheckpointError, PartialKDError, TeacherError
from partialkd.models import build_model
from partialkd.models.saved import read_metadata, save_model
from partialkd.run.finished import MADE_FROM, check_finished, made_from
from partialkd.run.first_centres import make_store
from partialkd.run.job import make_teacher, run_phase

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, a student that was trained, and another job's data and teacher."""
    folder = tmp_path_factory.mktemp("job")
    made(folder)
    (folder / "other").mkdir()
    made(folder / "other", seed=1)
    run(job, 1, named(folder, "done"))
    return folder


def finished(place: Path, settings: dict[str, Any]) -> None:
    """Start this run as a resumed one, and take its student as finished; an error if it is another job's."""
    started = start(settings, "auto")
    run_phase(started, "student", started.context.config.student, make_teacher(started))
    assert "student" not in started.times.this_start()["phase_seconds"]  # nothing was trained


@pytest.mark.slow
def test_this_jobs_student_is_believed_and_says_what_made_it(place: Path) -> None:
    finished(place, named(place, "done"))
    said = json.loads(read_metadata(place / "runs" / "done" / "student" / "model.safetensors")[MADE_FROM])
    assert said["seed"] == 0
    assert said["method"]["name"] == "arcdistill"
    assert said["settings"]["data.flip"] is True
    assert len(said["teacher"]) == 64
    assert not [key for key in said["settings"] if "path" in key]  # places of files are nobody's business


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run": {"seed": 7}}, "seed = 0, this run has 7"),
        ({"data": {"flip": False}}, "data.flip = True, this run has False"),
        ({"student": {"epochs": 3}}, "epochs = 2.0, this run has 3.0"),
        ({"teacher": {"path": "other/t.safetensors"}}, "teacher = '"),
        ({"data": {"path": "other/data"}}, "data = '"),
    ],
    ids=["seed", "flip", "epochs", "teacher", "data"],
)
def test_another_jobs_student_is_refused(change: dict[str, Any], said: str, place: Path) -> None:
    """Put into this run's folder, where it would be reported as this job's."""
    for section in change.values():
        if "path" in section:
            section["path"] = str(place / section["path"])
    settings = named(place, f"taken{abs(hash(str(change)))}")
    settings = {key: {**value, **change.get(key, {})} for key, value in settings.items()}
    folder = start(settings).context.folder
    shutil.copytree(place / "runs" / "done" / "student", folder / "student")
    with pytest.raises(CheckpointError, match=r"student/model\.safetensors: was made by another job, with .*" + said):
        finished(place, settings)


def context_of(place: Path, name: str) -> RunContext:
    return start(named(place, name)).context


@pytest.mark.slow
def test_a_student_of_an_earlier_version_is_believed_if_its_checkpoint_is_this_jobs(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files did not say then what made them; with no checkpoint either, that is said."""
    context = context_of(place, "older")
    shutil.copytree(place / "runs" / "done" / "student", context.folder / "student")
    phase, path = context.config.student, context.folder / "student" / "model.safetensors"
    save_model(path, build_model(phase.model, 32), phase.model, 32)
    assert check_finished(context, "student", phase)
    assert "does not say what made it" not in caplog.text
    other = phase.model_copy(update={"epochs": 5.0})
    with pytest.raises(CheckpointError, match=r"epochs = 2\.0, this run has 5\.0"):
        check_finished(context, "student", other)
    for progress in (context.folder / "student" / "checkpoints").glob("*/progress.json"):
        progress.write_bytes(b"\xff" * progress.stat().st_size)  # of a manifest, sizes alone are compared
    with pytest.raises(CheckpointError, match=r"step_\d+: damaged: "):
        check_finished(context, "student", phase)
    shutil.rmtree(context.folder / "student" / "checkpoints")
    assert check_finished(context, "student", phase)
    assert caplog.text.count("does not say what made it") == 1
    wider = phase.model_copy(update={"model": phase.model.model_copy(update={"embedding_dim": 24})})
    with pytest.raises(CheckpointError, match="model = 'mobilefacenet_gdc, 16', this run has 'mobilefacenet_gdc, 24'"):
        check_finished(context, "student", wider)


@pytest.mark.slow
def test_a_network_for_images_of_another_size_is_refused(place: Path) -> None:
    context = context_of(place, "sizes")
    phase = context.config.student
    more = made_from(context, "student", phase, None)
    save_model(context.folder / "student" / "model.safetensors", build_model(phase.model, 48), phase.model, 48, more)
    with pytest.raises(CheckpointError, match="image_size = 48, this run has 32"):
        check_finished(context, "student", phase)


@pytest.mark.slow
def test_moved_files_are_the_same_files(place: Path, tmp_path: Path) -> None:
    """Data, teacher and run folder under other names; the run goes on as if nothing had happened."""
    for name in ("data", "runs", "t.safetensors", "pairs.bin", "rows.npy"):
        source = place / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    finished(tmp_path, named(tmp_path, "done"))


@pytest.mark.slow
def test_a_begun_student_does_not_go_on_with_another_teachers_centres(place: Path) -> None:
    """Fixed centres are in no checkpoint: they are made again from the teacher, which must be the same."""
    started = start(named(place, "centres"))
    context, phase, teaching = started.context, started.context.config.student, make_teacher(started)
    make_store(context, phase, teaching)
    shutil.copytree(place / "runs" / "done" / "student" / "checkpoints", context.folder / "student" / "checkpoints")
    make_store(context, phase, teaching, resumed=True)
    assert teaching is not None
    other = replace(teaching, fingerprint="0" * 64)
    with pytest.raises(TeacherError, match=r"teacher_centres: the student has begun with these centres.*teacher '"):
        make_store(context, phase, other, resumed=True)
    make_store(context, phase, other)  # not begun: made again


@pytest.mark.slow
def test_parts_may_lie_elsewhere_but_not_weigh_otherwise(place: Path) -> None:
    folder = place / "runs" / "parts"
    folder.mkdir(parents=True)
    settings = named(place, "parts")
    part = {"path": str(place / "data"), "source": "folder", "weight": 1.0}
    settings["data"] = {"image_size": 32, "parts": [part]}
    save_config(parse_config(settings), folder / "config.toml")
    check_same_run(parse_config({**settings, "data": {"image_size": 32, "parts": [{**part, "path": "/x"}]}}),
                   folder / "config.toml")  # fmt: skip
    heavier = {**settings, "data": {"image_size": 32, "parts": [{**part, "weight": 2.0}]}}
    with pytest.raises(PartialKDError, match=r"data\.parts\.weight: must be \[1\.0\], got \[2\.0\]"):
        check_same_run(parse_config(heavier), folder / "config.toml")
