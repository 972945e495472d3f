"""What is found wrong at a start is found before the run's folder is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.started_jobs import made, named, start
from partialkd.errors import ConfigError, DataError, PartialKDError, TeacherError
from partialkd.run.scores import KEPT

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, and a run that was begun."""
    folder = tmp_path_factory.mktemp("job")
    made(folder)
    start(named(folder, "first"))
    (folder / "short.txt").write_text("0\n1\n")
    rows = np.load(folder / "rows.npy")
    np.save(folder / "wide.npy", np.ones((12, 8), np.float32))
    rows[3] = np.nan
    np.save(folder / "nan.npy", rows)
    (folder / "cache").mkdir()
    return folder


def classifier(name: str, label_map: str = "identity") -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {
        "centres": "classifier",
        "classifier": str(folder / name),
        "label_map": label_map if label_map == "identity" else str(folder / label_map),
    }


WRONG: dict[str, tuple[Callable[[Path], dict[str, Any]], type[PartialKDError], str]] = {
    "teacher.path": (lambda folder: {"path": str(folder / "typo.safetensors")}, TeacherError, r"typo\.safetensors: no"),
    "dimension": (lambda _: {"project_to": 8}, ConfigError, "embedding_dim.*must be the teacher's 8"),
    "cache": (lambda folder: {"cache": str(folder / "cache")}, TeacherError, "cache: holds no teacher cache"),
    "own cache": (lambda folder: {"cache": "auto", "path": str(folder / "typo.safetensors")}, TeacherError, "no such"),
    "classifier": (classifier("typo.npy"), TeacherError, r"typo\.npy: cannot be read"),
    "its width": (classifier("wide.npy"), TeacherError, r"rows must be \(n, 16\)"),
    "its rows": (classifier("nan.npy"), TeacherError, r"nan\.npy: holds rows that are zero or not finite"),
    "label map": (
        classifier("rows.npy", "short.txt"),
        TeacherError,
        r"short\.txt: must have a line for each of",
    ),
    "accuracy": (lambda _: {"accept": False}, TeacherError, r"t\.safetensors: .*little better than guessing: .* 70 %"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG)
def test_a_start_that_fails_leaves_the_run_as_it_was(what: str, place: Path) -> None:
    """A good run of the same name stays under it, and where there was none there is none afterwards."""
    change, kind, said = WRONG[what]
    good, new = place / "runs" / "first", place / "runs" / "new"
    before = sorted(path.name for path in good.parent.iterdir())
    for name in ("first", "new"):
        with pytest.raises(kind, match=said):
            start(named(place, name, **change(place)))
    assert sorted(path.name for path in good.parent.iterdir()) == before
    assert (good / "config.toml").exists()
    assert not new.exists()


@pytest.mark.slow
def test_other_parts_of_a_start_come_first_too(place: Path) -> None:
    before = sorted(path.name for path in (place / "runs").iterdir())
    settings = named(place, "first")
    for section, key, value, kind in (
        ("student", "global_batch", 1000, ConfigError),
        ("evaluate", "sets", [str(place / "nowhere.bin")], DataError),
    ):
        with pytest.raises(kind):
            start({**settings, section: {**settings[section], key: value}})
    with pytest.raises(PartialKDError, match="must be a complete checkpoint"):
        start(settings, str(place / "runs" / "first" / "student" / "checkpoints" / "step_000000001"))
    assert sorted(path.name for path in (place / "runs").iterdir()) == before


@pytest.mark.slow
def test_a_run_may_be_begun_after_a_failed_start(place: Path) -> None:
    """Resumed: nothing of the failed one stands in its way."""
    settings = named(place, "again", path=str(place / "typo.safetensors"))
    with pytest.raises(TeacherError):
        start(settings, "auto")
    settings["teacher"]["path"] = str(place / "t.safetensors")
    assert start(settings, "auto").context.folder.exists()


# ------------------------------------------------------------------------------------------ the teacher's score


@pytest.mark.slow
def test_a_teacher_that_is_accepted_is_warned_of(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="partialkd")
    job = start(named(place, "accepted"))
    assert "t.safetensors: this teacher has an accuracy of " in caplog.text
    assert [record.levelname for record in caplog.records if "little better than" in record.message] == ["WARNING"]
    assert job.checked.scores.keys() == {"pairs"}
    assert job.checked.scores["pairs"].accuracy < 0.7


@pytest.mark.slow
def test_its_scores_are_computed_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept in the run's folder, for this teacher and these sets only, and not believed when damaged."""
    settings = named(place, "kept")
    scores = start(settings).checked.scores
    kept = place / "runs" / "kept" / KEPT
    calls: list[str] = []

    def counted(context: Any, who: str, *_: Any) -> Any:
        calls.append(who)
        return scores

    monkeypatch.setattr("partialkd.run.checks.score", counted)
    assert start(settings, "auto").checked.scores == scores
    assert calls == []
    other = {**settings, "evaluate": {**settings["evaluate"], "folds": 5}}
    start(other, "auto")
    assert calls == ["teacher"]
    start(settings, "auto")
    kept.write_text(kept.read_text().replace('"pairs": 40', '"pairs": 41'))
    start(settings, "auto")
    assert calls == ["teacher"] * 3
    monkeypatch.setattr("partialkd.run.scores.DECODING", -1)  # images have other pixels now
    start(settings, "auto")
    assert calls == ["teacher"] * 4


@pytest.mark.slow
def test_what_cannot_be_judged_is_said(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {**named(place, "unjudged", accept=False), "evaluate": {"sets": []}}
    caplog.set_level("INFO", logger="partialkd")
    assert start(settings).checked.scores == {}
    assert "could not be judged before training: evaluate.sets names no verification set" in caplog.text


@pytest.mark.slow
def test_a_student_that_has_begun_is_not_stopped_by_its_teachers_score(place: Path) -> None:
    settings = named(place, "begun")
    start(settings)
    settings["teacher"]["accept"] = False
    with pytest.raises(TeacherError, match="little better than guessing"):
        start(settings, "auto")
    (place / "runs" / "begun" / "student" / "checkpoints").mkdir(parents=True)
    start(settings, "auto")
