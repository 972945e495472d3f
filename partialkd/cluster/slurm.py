"""Jobs for Slurm: one run, or an array of one run for each configuration and seed, all by launch/slurm/train.sbatch.

The batch script does what cannot be done from outside the job: it starts torchrun on every node, has the ranks save
before the time is up, and queues the job again. Every task trains the configuration as it was when it was submitted,
from a copy in `.submitted` of the folder of runs, whatever becomes of the file while the job waits. The copy is called
by its content, so that no later one takes its place. An array has the command lines of all its tasks in its arguments.
(submitit, which pickles a function and starts it in every task of srun, would take the place of torchrun, and with it
of its restarts, and would have nodes unpickle files.)

Errors: `ConfigError` naming key, option or file; nothing has been submitted then.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import partialkd
from partialkd.config import Config
from partialkd.config.load import as_toml, load_config, save_config
from partialkd.errors import ConfigError
from partialkd.run.checks import phases_of
from partialkd.run.folder import as_begun_in_its_folder, check_run, run_folder
from partialkd.storage.atomic_files import naming
from partialkd.training.phase_plan import check_batch, key_of

ROOT = Path(partialkd.__file__).parents[1]
SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"
COPIES = ".submitted"  # in the folder of runs; no run is called so
AND = "--and"  # between the command lines of an array's tasks
LEAD_S = 300  # how long before the end of its time a job is told to save
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Task:
    """One run: its configuration, and where the job reads that."""

    config: Config
    copy: Path
    options: tuple[str, ...] = ()  # of launch/train.py

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.config.run.name

    @property
    def words(self) -> tuple[str, ...]:
        """The command line of launch/train.py."""
        return (str(self.copy), *self.options)


@dataclass(frozen=True)
class Request:
    """What is asked of Slurm for every task."""

    nodes: int
    gpus: int  # a node; 0: ranks on the CPU
    ranks_per_node: int  # without GPUs
    cpus: int  # a node
    time: str = "24:00:00"
    logs: Path = Path()
    options: tuple[str, ...] = ()  # other options of sbatch, as it takes them

    @property
    def ranks(self) -> int:
        """Ranks of one task."""
        return self.nodes * (self.gpus or self.ranks_per_node)


def tasks_of(
    configs: Sequence[str], overrides: Sequence[str], seeds: Sequence[int], ranks: int, resume: str | None = None
) -> list[Task]:
    """Every configuration with every seed, checked for so many ranks, and against the run that it would go on with.

    Runs of several seeds are called <run.name>-seed<N>.
    """
    first = resume or "auto"  # as the batch script does it
    tasks: list[Task] = []
    folders: dict[Path, str] = {}
    each: list[int | None] = [*seeds] or [None]
    for path in configs:
        for seed in each:
            own = list(overrides)
            if seed is not None:
                name = load_config(path, own).run.name
                own += [f"run.seed={seed}", f"run.name={name}-seed{seed}"]
            config = as_begun_in_its_folder(load_config(path, own), first)
            check_run(config, first)
            for phase, settings in phases_of(config).items():
                check_batch(key_of(phase), settings, ranks)
            folder = run_folder(config)
            if folder in folders:
                raise ConfigError(f"{path}: run.name: {folder} is the folder of {folders[folder]} too")
            folders[folder] = path
            tasks.append(Task(config, copy_of(config), ("--resume", resume) if resume else ()))
    return tasks


def copy_of(config: Config) -> Path:
    """Where the copy of this configuration lies, once it is kept."""
    digest = hashlib.sha256(as_toml(config).encode()).hexdigest()[:12]
    return Path(config.run.folder) / COPIES / f"{config.run.name[:150]}-{digest}.toml"


def command_of(request: Request, tasks: Sequence[Task]) -> list[str]:
    """The command line of sbatch."""
    many = len(tasks) > 1
    log = request.logs / ("slurm-%A_%a.log" if many else "slurm-%j.log")
    words = ["sbatch", "--parsable", f"--nodes={request.nodes}", f"--cpus-per-task={request.cpus}"]
    words += [f"--gpus-per-node={request.gpus}"] if request.gpus else []
    words += [f"--time={checked_time(request.time)}", f"--job-name={tasks[0].name}", f"--output={log}"]
    words += [f"--array=0-{len(tasks) - 1}"] if many else []
    words += [*request.options, str(SCRIPT)]
    for number, task in enumerate(tasks):
        words += [AND, *task.words] if number else task.words
    return words


def environment_of(request: Request, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the batch script takes from its environment, as far as nobody has set it."""
    wanted = {"PARTIALKD_ROOT": str(ROOT)}
    if not request.gpus:
        wanted["RANKS_PER_NODE"] = str(request.ranks_per_node)
    if "PARTIALKD_CONTAINER" not in given:
        wanted["PARTIALKD_VENV"] = sys.prefix
    return {key: value for key, value in wanted.items() if key not in given or key == "RANKS_PER_NODE"}


def check_here(request: Request, environment: Mapping[str, str]) -> None:
    """Refuse what would only be found in the queue."""
    if not SCRIPT.is_file():
        raise ConfigError(f"{SCRIPT}: is not there; partialkd must be installed from its repository (pip install -e)")
    venv = environment.get("PARTIALKD_VENV") or os.environ.get("PARTIALKD_VENV")
    for program in ("python", "torchrun"):
        if venv and not (Path(venv) / "bin" / program).exists():
            raise ConfigError(f"PARTIALKD_VENV: must be a virtual environment with bin/{program}, got {venv}")
    if not (request.logs.is_dir() and os.access(request.logs, os.W_OK)):
        raise ConfigError(f"--logs {request.logs}: must be a folder that can be written to")


def submit(command: Sequence[str], environment: Mapping[str, str], tasks: Sequence[Task]) -> str:
    """Write the copies that the job reads, and hand it to Slurm -> its number."""
    if shutil.which(command[0]) is None:
        raise ConfigError(
            f"{command[0]}: not found: this is no machine that submits to Slurm; --dry-run shows the command"
        )
    for task in tasks:
        with naming(task.copy):
            task.copy.parent.mkdir(parents=True, exist_ok=True)
        save_config(task.config, task.copy)
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(f"sbatch refused the job: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip().partition(";")[0]


def shown(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """The command as one would type it."""
    return " ".join([*(f"{key}={shlex.quote(value)}" for key, value in environment.items()), shlex.join(command)])


def checked_time(text: str) -> str:
    """Refuse a time that Slurm would read otherwise, or one in which nothing but saving fits."""
    found = _TIME.fullmatch(text)
    if not found:
        raise ConfigError(f"--time must be like 24:00:00, 2-12:00:00 or 90 (minutes), got {text!r}")
    days, first, second, third = (int(part) if part else None for part in found.groups())
    if days is not None:  # days-hours[:minutes[:seconds]]
        seconds = ((days * 24 + (first or 0)) * 60 + (second or 0)) * 60 + (third or 0)
    elif third is not None:  # hours:minutes:seconds
        seconds = ((first or 0) * 60 + (second or 0)) * 60 + third
    else:  # minutes[:seconds]
        seconds = (first or 0) * 60 + (second or 0)
    if seconds <= 2 * LEAD_S:
        raise ConfigError(
            f"--time must be more than {2 * LEAD_S // 60} minutes: ranks save {LEAD_S} s before it is up, got {text}"
        )
    return text


def parse_seeds(text: str) -> list[int]:
    """The numbers that "0-4" or "1,3,7-9" says, each once."""
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        last = int(ends[2] or ends[1]) if ends else -1
        if not ends or last < int(ends[1]) or last - int(ends[1]) >= 1000:
            raise ValueError(f"must be numbers like 0-4 or 1,3,7, got {text!r}")
        found += range(int(ends[1]), last + 1)
    return list(dict.fromkeys(found))
