"""A run's folder: who owns it; begun anew, gone on with, or gone back to an earlier checkpoint. Nothing is overwritten.

One job at a time has a run's folder (storage/claim.py): rank 0 holds the claim from before any work until the end, also
an end by an error or a signal. Another start of the same run is refused while that job lives, whatever --resume says.
Ranks that torchrun starts again, and a job that Slurm queued again, take over at once.

`--resume never` moves an earlier run of the same name aside (`<name>.1`, `.2`, ...); `auto` goes on with it, if the
configuration is the same; a checkpoint's path goes back to that checkpoint, if it is undamaged: what was made after
it, later checkpoints of its phase and the phases that follow, is moved aside likewise. With `--extend` epochs and
max_steps of a phase may be more than they were: it goes on from its last checkpoint, finished or not.
A run folder that is a link is followed: what it points to is moved aside, and made anew where it was.
Which phases are finished and which checkpoint a phase goes on from is decided here; whether a checkpoint is this run's,
and what is put back from it, in training/state.py; which keys may change, in config/resume.py, off the marks of fields.
Errors: `InUse` naming the other job, `ConfigError` naming the keys that differ, `CheckpointError` and `StorageError`
naming the path.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from partialkd import checkpoint
from partialkd.config import Config
from partialkd.config.load import save_config
from partialkd.config.resume import as_begun, check_same_run, saved_tree
from partialkd.context import SAVED_CONFIG
from partialkd.errors import CheckpointError, ConfigError
from partialkd.models.saved import MODEL
from partialkd.storage.atomic_files import followed, naming
from partialkd.storage.claim import Claim, claim
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

IN_USE = "wait for it to end, stop it, or choose another run.name"


def owned_run(config: Config, world: World, stop: StopSignals) -> AbstractContextManager[None]:
    """Collective. The run's folder is this job's, and no other's, inside the `with` block."""
    return owned(run_folder(config), world, stop, IN_USE)


@contextmanager
def owned(folder: Path, world: World, stop: StopSignals, rule: str = "", waiting_for: str = "") -> Iterator[None]:
    """Collective. A folder is this job's alone inside the `with` block; `rule` and `waiting_for` as in `claim`."""
    held: list[Claim] = []

    def take() -> None:
        held.append(claim(folder, rule, world.recall("claim"), waiting_for))
        world.remember("claim", held[0].owner.token)

    try:
        world.on_main(lambda: stop.cut_short(f"waiting for {folder}", take))
        yield
    finally:
        for one in held:
            one.release()


def run_folder(config: Config) -> Path:
    """Return the folder of the run of this configuration."""
    return followed(Path(config.run.folder) / config.run.name)


def check_run(config: Config, resume: str, extend: bool = False) -> list[str]:
    """Refuse what `open_run` would refuse; nothing is touched -> the phases that are to be longer than they were."""
    folder, longer = run_folder(config), []
    if extend and resume == "never":
        raise ConfigError("--extend: only with --resume auto or a checkpoint's path, got --resume never")
    begun = any((folder / name).exists() for name in (*config.phases, SAVED_CONFIG))
    if resume != "never" and begun:
        keys = check_same_run(config, folder / SAVED_CONFIG, extend)
        sections = {"teacher": "teacher", config.student.names[0]: "student", "alone": "alone"}
        longer = [name for name, key in sections.items() if any(one.startswith(f"{key}.") for one in keys)]
    if resume not in ("never", "auto"):
        _complete_before(folder, Path(resume), list(config.phases))
    for phase in longer:
        if (folder / phase / MODEL).exists() and checkpoint.newest(folder / phase / "checkpoints") is None:
            raise CheckpointError(f"{folder / phase}: --extend goes on from its last checkpoint, and there is none")
    return longer


def open_run(config: Config, resume: str, extend: bool = False) -> Path:
    """Open the folder of this run, ready to be written to; on one rank.

    extend: phases may be longer than they were; those that were finished then are gone on with.
    """
    folder = run_folder(config)
    for phase in check_run(config, resume, extend):
        _reopen(folder, phase, config.student.names)
    if resume == "never":
        move_aside(folder)
    if resume not in ("never", "auto"):
        go_back(folder, Path(resume), list(config.phases))
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / SAVED_CONFIG)
    return folder


def as_begun_in_its_folder(config: Config, resume: str) -> Config:
    """The configuration with which a run goes on: what is new since it was begun, and not given now, as it was then."""
    saved = run_folder(config) / SAVED_CONFIG
    return config if resume == "never" or not saved.exists() else as_begun(config, saved_tree(saved))


def go_back(folder: Path, path: Path, phases: list[str]) -> None:
    """Make `path` the newest checkpoint of the run, and its phase the one that is not finished; phases: of the run."""
    phase, complete = path.resolve().parent.parent, _complete_before(folder, path, phases)
    checkpoint.verify(path)
    for later in complete[complete.index(path.resolve()) + 1 :]:
        move_aside(later)
    move_aside(phase / MODEL)
    for following in phases[phases.index(phase.name) + 1 :]:
        move_aside(phase.parent / following)


def _reopen(folder: Path, phase: str, students: tuple[str, ...]) -> None:
    """Make a finished phase one that is not; a student of a teacher that trains on is another student."""
    move_aside(folder / phase / MODEL)
    chain = ("teacher", *students)
    if phase in chain:
        for taught in chain[chain.index(phase) + 1 :]:
            move_aside(folder / taught)


def _complete_before(folder: Path, path: Path, phases: list[str]) -> list[Path]:
    """List the complete checkpoints of the phase that `path` is one of."""
    phase = path.resolve().parent.parent
    complete = checkpoint.complete(phase / "checkpoints")
    if phase.parent != folder.resolve() or phase.name not in phases or path.resolve() not in complete:
        raise CheckpointError(f"--resume {path}: must be a complete checkpoint <phase>/checkpoints/step_* of {folder}")
    return complete


def move_aside(path: Path) -> None:
    """Rename to <name>.<first free number>, if it is there; an empty folder stays."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        number = next(n for n in range(1, 1_000_000) if not path.with_name(f"{path.name}.{n}").exists())
        with naming(path, "moved aside"):
            path.rename(path.with_name(f"{path.name}.{number}"))
