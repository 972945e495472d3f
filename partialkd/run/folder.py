"""A run's folder: begun anew, gone on with, or gone back to an earlier checkpoint. Nothing is ever overwritten.

`--resume never` moves an earlier run of the same name aside (`<name>.1`, `.2`, ...); `auto` goes on with it, if the
configuration is the same; a checkpoint's path goes back to that checkpoint, if it is undamaged: what was made after
it, later checkpoints of its phase and the phases that follow, is moved aside likewise.
Which phases are finished and which checkpoint a phase goes on from is decided here; whether a checkpoint is this run's,
and what is put back from it, in training/state.py; which keys may change, in config/resume.py, off the marks of fields.
Call on one rank. Errors: `ConfigError` naming the keys that differ, `CheckpointError` naming the path.
"""

from __future__ import annotations

from pathlib import Path

from partialkd import checkpoint
from partialkd.config import Config
from partialkd.config.load import save_config
from partialkd.config.resume import check_same_run
from partialkd.errors import CheckpointError
from partialkd.models.saved import MODEL

PHASES = ("teacher", "student", "alone")  # in the order of a run
SAVED_CONFIG = "config.toml"


def open_run(config: Config, resume: str) -> Path:
    """The folder of this run, ready to be written to."""
    folder = Path(config.run.folder) / config.run.name
    if resume == "never":
        move_aside(folder)
    elif any((folder / phase).exists() for phase in PHASES) or (folder / SAVED_CONFIG).exists():
        check_same_run(config, folder / SAVED_CONFIG)
    if resume not in ("never", "auto"):
        go_back(folder, Path(resume))
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / SAVED_CONFIG)
    return folder


def go_back(folder: Path, path: Path) -> None:
    """Make `path` the newest checkpoint of the run, and its phase the one that is not finished."""
    phase = path.resolve().parent.parent
    complete = checkpoint.complete(phase / "checkpoints")
    if phase.parent != folder.resolve() or phase.name not in PHASES or path.resolve() not in complete:
        raise CheckpointError(f"--resume {path}: must be a complete checkpoint <phase>/checkpoints/step_* of {folder}")
    checkpoint.verify(path)
    for later in complete[complete.index(path.resolve()) + 1 :]:
        move_aside(later)
    move_aside(phase / MODEL)
    for following in PHASES[PHASES.index(phase.name) + 1 :]:
        move_aside(phase.parent / following)


def move_aside(path: Path) -> None:
    """Rename to <name>.<first free number>, if it is there."""
    if path.exists():
        number = next(n for n in range(1, 1_000_000) if not path.with_name(f"{path.name}.{n}").exists())
        path.rename(path.with_name(f"{path.name}.{number}"))
