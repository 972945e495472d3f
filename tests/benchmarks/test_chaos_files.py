"""What chaos.py damages, and how it judges what comes of it."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from helpers.places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import chaos_files
from chaos_job import Job

FILES = (
    "data/train.rec", "runs/quickstart/metrics.jsonl", "runs/quickstart/logs/rank0.log",
    *(f"runs/quickstart/student/checkpoints/step_00000000{n}/progress.json" for n in (2, 4, 6)), "log.txt",
)  # fmt: skip


@pytest.fixture
def job(tmp_path: Path) -> Job:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("0123456789")
    return Job(tmp_path, 2, 30.0)


def test_every_kind_of_file_comes_first_and_every_damage_comes(job: Job) -> None:
    deck = chaos_files._deck(job.folder, random.Random(0))
    kinds = {"data/train.rec", "runs/quickstart/metrics.jsonl"}
    first = [path.as_posix() for path, _ in deck[:3]]
    assert kinds < set(first)
    assert "progress.json" in "".join(first)
    assert len(deck) == len(set(deck)) == 5 * 5


@pytest.mark.parametrize("kind", chaos_files.DAMAGE)
def test_damage_changes_the_file(job: Job, kind: str) -> None:
    path = job.folder / "data" / "train.rec"
    chaos_files.DAMAGE[kind](path, random.Random(0))
    assert not path.exists() or path.read_bytes() != b"0123456789"


def test_half_a_run_keeps_the_first_checkpoint(job: Job) -> None:
    chaos_files.half_finish(job)
    left = (job.run / "student" / "checkpoints").iterdir()
    assert [path.name for path in left] == ["step_000000002"]


@pytest.mark.parametrize(
    ("status", "said", "wrong"),
    [
        (1, "error: /runs/trial/progress.json: damaged", None),
        (1, "error: something is wrong", "refused without its name"),
        (1, "Traceback (most recent call last):\nprogress.json", "a traceback"),
        (0, "", "other results: scores"),
    ],
)
def test_what_is_wrong_after_damage(
    job: Job, monkeypatch: pytest.MonkeyPatch, status: int, said: str, wrong: str | None
) -> None:
    monkeypatch.setattr(chaos_files, "results", lambda _: [("scores", "others")])
    job.log.write_text(said)
    path = Path("runs/quickstart/student/checkpoints/step_000000002/progress.json")
    _, _, problem = chaos_files._judged_damage(job, status, path, "cut", {"scores": "expected"})
    assert problem is wrong is None or str(problem).startswith(str(wrong))


@pytest.mark.parametrize(
    ("statuses", "texts", "same_run", "wrong"),
    [
        ((0, 2), ("", "error: runs/a: in use by process 7 on here since now; wait"), True, None),
        ((0, 2), ("", "error: runs/a: in use by process 7 on here since now; wait"), False, "a job failed"),
        ((0, 1), ("", "error: out of memory"), True, "a job failed"),
        ((0, 0), ("", "waiting for process 7"), False, None),
        ((0, 0), ("Traceback", ""), True, "a traceback"),
    ],
)
def test_what_is_wrong_with_two_jobs(
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    statuses: tuple[int, int],
    texts: tuple[str, str],
    same_run: bool,
    wrong: str | None,
) -> None:
    monkeypatch.setattr(chaos_files, "results", lambda _: [("scores", "1")])
    jobs = (job, Job(job.folder, 2, 30.0, log="second.txt"))
    for one, text in zip(jobs, texts, strict=True):
        one.log.write_text(text)
    _, _, problem = chaos_files._judged_pair(list(zip(jobs, statuses, strict=True)), same_run, {"scores": "1"})
    assert problem is wrong is None or str(problem).startswith(str(wrong))
