"""The job of chaos.py: started as a user would, hit by faults, and what must not depend on them. Linux only."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = {  # of thirteen faults
    "kill a rank": 5, "kill the launcher": 2, "stop a rank": 2, "kill all ranks": 1, "HUP": 2, "lost stdout": 1,
}  # fmt: skip
OVERRIDES = (
    "run.deterministic=true", "run.checkpoint_every=2", "run.log_every=1", "run.tensorboard=false", "run.report=false",
    "dist.device=cpu", "data.loader=jpeg", "data.prepare.identities=24",
    "data.prepare.images_per_identity=10", "data.prepare.held_out_identities=12", "data.prepare.pairs=120",
    *(f"{phase}.{setting}" for phase in ("teacher.train", "student", "alone")
      for setting in ("global_batch=24", "epochs=2", "schedule.warmup_steps=2", "model.width=0.25")),
    "evaluate.batch=16", "evaluate.folds=4",
)  # fmt: skip


class Job:
    """One folder, and the command that is repeated until it is finished."""

    def __init__(
        self, folder: Path, ranks: int, timeout_s: float, name: str = "quickstart", log: str = "log.txt"
    ) -> None:
        self.folder, self.ranks, self.timeout_s, self.name = folder, ranks, timeout_s, name
        self.run = folder / "runs" / name
        self.log = folder / log
        self.launcher: subprocess.Popen[bytes] | None = None
        self.audience: subprocess.Popen[bytes] | None = None  # what reads its standard output

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        places = [f"dist.timeout_s={self.timeout_s}", f"run.folder={self.folder}/runs", f"data.path={self.folder}/data"]
        places.append(f"run.name={self.name}")
        command = ["launch/local.sh", *OVERRIDES, *places, f"evaluate.sets=['{self.folder}/data/faces.bin']"]
        environment = {**os.environ, "NPROC": str(self.ranks), "OMP_NUM_THREADS": "1", "MAX_RESTARTS": "2"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        with self.log.open("ab") as log:
            self.audience = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log)
            self.launcher = subprocess.Popen(
                [*command, "--resume", "auto"], cwd=ROOT, env=environment, stdout=self.audience.stdin, stderr=log
            )
        assert self.audience.stdin is not None
        self.audience.stdin.close()  # the launcher and its ranks have the other copies

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


# -------------------------------------------------------------------------------------------------- faults


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
    if kind == "lost stdout":
        return _lose_audience(job)
    if kind == "HUP":  # a closed terminal sends it to all
        return _signal([job.launcher.pid, *ranks], signal.SIGHUP)
    number = signal.SIGSTOP if kind == "stop a rank" else signal.SIGKILL
    return _signal(ranks if kind == "kill all ranks" else [rng.choice(ranks)], number)


def _signal(pids: list[int], number: signal.Signals) -> bool:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
    return True


def _lose_audience(job: Job) -> bool:
    if job.audience is None or job.audience.poll() is not None:
        return False
    job.audience.kill()
    job.audience.wait()
    return True


# ------------------------------------------------------------------------------------------------- results


def results(job: Job) -> Iterator[tuple[str, str]]:
    """Name and digest of everything that must not depend on faults."""
    for pattern in ("*/model.safetensors", "*/centres/**/*.safetensors", "teacher_centres/**/*.safetensors"):
        for path in sorted(job.run.glob(pattern)):
            if path.is_file():
                yield str(path.relative_to(job.run)), _digest(path)
    lines = [json.loads(line) for line in (job.run / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: x for key, x in line.items() if key != "time" and not key.endswith("_s")} for line in lines]
    yield "metrics.jsonl without times and rates", repr(kept)
    yield "scores", repr(json.loads((job.run / "result.json").read_text())["sets"])


def _digest(path: Path) -> str:
    """Of its content; the library writes the entries of a header of .safetensors in any order."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        end = 8 + int.from_bytes(content[:8], "little")
        with suppress(ValueError):  # damaged, and not read by this run: compared as it is
            content = json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]
    return hashlib.sha256(content).hexdigest()
