"""Faults until the job is done: kill -9 of ranks and of the launcher, SIGSTOP of ranks, at random moments.

    python benchmarks/chaos.py [--faults 100] [--minutes 60] [--seed 0] [--ranks 2] [--folder FOLDER] [--out FILE]

The job is the chain of configs/quickstart.toml (teacher, student, the student alone, evaluation, export), made shorter
by `OVERRIDES`, in deterministic mode, run by launch/local.sh with --resume auto and MAX_RESTARTS = 2. It runs once
undisturbed. Then it is started again and again as a user would, by the same command: every start goes on to the next
fault, which comes a random time after the start or after progress was seen (a new checkpoint, a new line of metrics, a
finished phase), so that faults also hit start-up, saving, evaluation, the pass for class means and the changes between
phases. When the job has been finished it is begun anew in another folder, until `--faults` faults have been made; the
last round runs to its end. Every finished round must have, bit for bit, the files of the undisturbed run: the student
of every phase, the centres, the exported student, the scores, the loss of every logged step.

Written to --out: counts by kind and by what the job was doing, rounds, starts by hand, seconds from a fault to new
progress, hardware, versions, commit. Exit status 1 if a file differs or a job does not finish.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from measure import machine

from partialkd.files import write_json

ROOT = Path(__file__).parents[1]
KINDS = {"kill a rank": 5, "kill the launcher": 2, "stop a rank": 2, "kill all ranks": 1}  # with their weights
STUCK_S = 300.0  # without progress: the soak has failed
OVERRIDES = (
    "run.deterministic=true", "run.checkpoint_every=2", "run.log_every=1", "run.tensorboard=false",
    "dist.device=cpu", "data.loader=jpeg", "data.prepare.identities=24",
    "data.prepare.images_per_identity=10", "data.prepare.held_out_identities=12", "data.prepare.pairs=120",
    *(f"{phase}.{setting}" for phase in ("teacher.train", "student", "alone")
      for setting in ("global_batch=24", "epochs=2", "schedule.warmup_steps=2", "model.width=0.25")),
    "evaluate.batch=16", "evaluate.folds=4",
)  # fmt: skip


@dataclass
class Counts:
    """What happened."""

    kinds: Counter[str] = field(default_factory=Counter)
    doing: Counter[str] = field(default_factory=Counter)
    starts: int = 0  # of the command
    rounds: int = 0
    recovery_s: list[float] = field(default_factory=list)


class Job:
    """One folder, and the command that is repeated until it is finished."""

    def __init__(self, folder: Path, ranks: int, timeout_s: float) -> None:
        self.folder, self.ranks, self.timeout_s = folder, ranks, timeout_s
        self.run = folder / "runs" / "quickstart"
        self.log = folder / "log.txt"
        self.launcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        places = [f"dist.timeout_s={self.timeout_s}", f"run.folder={self.folder}/runs", f"data.path={self.folder}/data"]
        command = ["launch/local.sh", *OVERRIDES, *places, f"evaluate.sets=['{self.folder}/data/faces.bin']"]
        environment = {**os.environ, "NPROC": str(self.ranks), "OMP_NUM_THREADS": "1", "MAX_RESTARTS": "2"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        with self.log.open("ab") as log:
            self.launcher = subprocess.Popen(
                [*command, "--resume", "auto"], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def children(self) -> list[int]:
        """The ranks that there are now."""
        assert self.launcher is not None
        found = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        return [
            int(pid) for pid in _read(found).split() if "-u\0launch/train.py" in _read(Path(f"/proc/{pid}/cmdline"))
        ]

    def finished(self) -> bool:
        return (self.run / "export" / "model.onnx").exists() and self.launcher is not None and self.launcher.poll() == 0

    def progress(self) -> tuple[str, int]:
        """Changes whenever the job gets on: its newest checkpoint or other result, and the lines of metrics."""
        newest = max(self._results(), key=_modified, default=None)
        metrics = self.run / "metrics.jsonl"
        return str(newest), metrics.stat().st_size if metrics.exists() else 0

    def _results(self) -> list[Path]:
        patterns = ("*/checkpoints/step_*", "*/model.*", "*.json*", "teacher_centres/manifest.json")
        found = [path for pattern in patterns for path in self.run.glob(pattern)]
        return [*found, *self.folder.glob("data/manifest.json")]

    def doing(self) -> str:
        """What it does, as far as its folder tells."""
        born = [_modified(Path(f"/proc/{pid}")) for pid in self.children()]
        if not born:
            return "no ranks"
        if any(self.run.glob("*/checkpoints/.step_*")):
            return "saving"
        if max(map(_modified, self._results()), default=0.0) < max(born):
            return "start-up"
        finished = [
            name for name in ("teacher", "student", "alone") if (self.run / name / "model.safetensors").exists()
        ]
        return f"after {finished[-1]}" if finished else "first phase"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # an old checkpoint, removed meanwhile
        return 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended meanwhile
        return ""


# ------------------------------------------------------------------------------------------------- faults


def make_fault(job: Job, kind: str, rng: random.Random) -> bool:
    """False if there was nothing to hit."""
    assert job.launcher is not None
    ranks = job.children()
    if kind == "kill the launcher":
        if job.launcher.poll() is None:
            job.launcher.kill()
            return True
        return False
    if not ranks:
        return False
    number = signal.SIGSTOP if kind == "stop a rank" else signal.SIGKILL
    for pid in ranks if kind == "kill all ranks" else [rng.choice(ranks)]:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
    return True


class Soak:
    """Rounds of the job, with a fault whenever it has come a little further."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.rng, self.counts = args, random.Random(args.seed), Counts()
        self.deadline = time.monotonic() + 60 * args.minutes
        self.job = self.next_job()
        self.hit_at: float | None = None  # the time of a fault that there was no progress after

    def next_job(self) -> Job:
        job = Job(self.args.folder / f"round{self.counts.rounds}", self.args.ranks, self.args.timeout)
        self.start(job)
        return job

    def start(self, job: Job) -> None:
        self.counts.starts += 1
        job.start()

    def run(self, check: Callable[[Job], None]) -> None:
        """Until all faults are made, or the time is up; then the last round to its end."""
        patience = 0  # faults in a row that did not wait for progress
        while self.counts.kinds.total() < self.args.faults and time.monotonic() < self.deadline:
            early = patience < 2 and self.rng.random() < 0.3
            patience = patience + 1 if early else 0
            if self.wait(self.rng.uniform(0, 15), for_progress=not early):
                check(self.job)
                self.job = self.next_job()
                continue
            kind = self.rng.choices([*KINDS], weights=[*KINDS.values()])[0]
            doing = self.job.doing()
            if make_fault(self.job, kind, self.rng):
                self.counts.kinds[kind] += 1
                self.counts.doing[doing] += 1
                self.hit_at = self.hit_at or time.monotonic()
                say(f"{self.counts.kinds.total()}: {kind} ({doing})")
        while not self.wait(STUCK_S, for_progress=True):
            say("on to the end")
        check(self.job)

    def wait(self, pause_s: float, for_progress: bool) -> bool:
        """Wait for progress, then a part of `pause_s`, starting the job where it ended -> whether it has finished."""
        before, began, seen = self.job.progress(), time.monotonic(), None if for_progress else time.monotonic()
        while seen is None or time.monotonic() - seen < (pause_s / 5 if for_progress else pause_s):
            if self.job.finished():
                self.counts.rounds += 1
                self.recovered()
                return True
            assert self.job.launcher is not None
            if self.job.launcher.poll() is not None:
                self.start(self.job)
            if self.job.progress() != before:
                self.recovered()
                seen = seen or time.monotonic()
            if time.monotonic() - began > STUCK_S + pause_s:
                raise SystemExit(f"no progress in {STUCK_S} s: {self.job.log}")
            time.sleep(0.05)
        return False

    def recovered(self) -> None:
        if self.hit_at is not None:
            self.counts.recovery_s.append(time.monotonic() - self.hit_at)
            self.hit_at = None


def results(job: Job) -> Iterator[tuple[str, str]]:
    """Name and digest of everything that must not depend on faults."""
    for pattern in ("*/model.safetensors", "*/centres/**/*", "teacher_centres/**/*"):
        for path in sorted(job.run.glob(pattern)):
            if path.is_file():
                yield str(path.relative_to(job.run)), hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (job.run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["images_per_s"]
    yield "metrics.jsonl without images_per_s", repr(lines)
    yield "scores", repr(json.loads((job.run / "result.json").read_text())["sets"])


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60.0, help="no more faults after this long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=30.0, help="of a collective, in seconds; ends a stopped rank")
    parser.add_argument("--folder", type=Path, help="for the runs; default: a temporary one, removed if all is well")
    parser.add_argument("--out", type=Path, help="write the result here")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    temporary = args.folder is None
    args.folder = (args.folder or Path(tempfile.mkdtemp(prefix="chaos"))).absolute()
    start = time.monotonic()
    calm = Job(args.folder / "undisturbed", args.ranks, args.timeout)
    calm.start()
    assert calm.launcher is not None
    if calm.launcher.wait():
        raise SystemExit(f"the undisturbed run failed: {calm.log}")
    calm_s, expected = time.monotonic() - start, dict(results(calm))
    say(f"undisturbed: {calm_s:.0f} s, {len(expected)} results")
    differences: list[str] = []

    def check(job: Job) -> None:
        got = dict(results(job))
        differences.extend(f"{job.run}: {name}" for name in expected if got.get(name) != expected[name])
        differences.extend(f"{job.run}: {name}" for name in got.keys() - expected.keys())
        say(f"round finished: {'different: ' + ', '.join(differences) if differences else 'bit for bit the same'}")

    soak = Soak(args)
    try:
        soak.run(check)
    finally:
        if soak.job.launcher is not None:
            soak.job.launcher.kill()  # its ranks go with it
    seconds = time.monotonic() - start
    report(args, soak.counts, differences, seconds=seconds, undisturbed_seconds=calm_s, results_a_round=len(expected))
    if temporary and not differences:
        shutil.rmtree(args.folder)
    return 1 if differences else 0


def report(args: argparse.Namespace, counts: Counts, differences: list[str], **facts: float) -> None:
    times = counts.recovery_s or [0.0]
    value = {
        "faults": counts.kinds.total(),
        "by_kind": dict(counts.kinds),
        "by_moment": dict(counts.doing),
        "rounds": counts.rounds,
        "starts_by_hand": counts.starts,
        "equal": not differences,
        "differences": differences,
        **facts,
        "recovery_mean_s": statistics.mean(times),
        "recovery_median_s": statistics.median(times),
        "recovery_max_s": max(times),
        **{key: getattr(args, key) for key in ("ranks", "seed", "timeout")},
        "overrides": OVERRIDES,
        **machine(torch.device("cpu")),
    }
    print(json.dumps(value, indent=2))
    if args.out:
        write_json(args.out, value)


if __name__ == "__main__":
    raise SystemExit(main())
