"""Where the numbers of a run go: metrics.jsonl, TensorBoard, Weights & Biases. One small interface; rank 0 only.

An outlet takes lines, {"phase", "step", "epoch", "time", name: float}, and is closed at the end of its phase. What is
asked for and not installed is a ConfigError at the start; nothing is imported that is not asked for.

Weights & Biases sends nothing unless `run.wandb = "online"`. With "offline" it writes into <folder>/wandb, which
`wandb sync` sends when somebody runs it; its own reports of errors, its look at the machine, its packages, the source
code and the git repository, and what the console says, are off in both.
Errors: `ConfigError` naming the key; `DataError` for a metrics.jsonl that is something else; `OSError` from the disk.
"""

from __future__ import annotations

import json
import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

from partialkd.config import RunConfig
from partialkd.context import METRICS
from partialkd.errors import ConfigError, DataError
from partialkd.storage.atomic_files import write_text

WANDB_QUIET = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}  # read when it is imported


class Outlet(Protocol):
    """Where a logged step goes."""

    path: Path

    def put(self, line: dict[str, Any], /) -> None: ...

    def close(self) -> None: ...


def require_outlets(run: RunConfig) -> None:
    """Raise ConfigError for what is asked for and not installed; nothing is imported."""
    if run.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError("run.tensorboard: needs the package tensorboard, got true")
    if run.wandb != "off" and find_spec("wandb") is None:
        raise ConfigError(f'run.wandb: needs the package wandb, got "{run.wandb}"')


def open_outlets(folder: Path, phase: str, resume_step: int, run: RunConfig) -> list[Outlet]:
    """Open all that the run asks for; a phase that goes on does so after `resume_step`."""
    outlets: list[Outlet] = [MetricsFile(folder / METRICS, phase, resume_step)]
    if run.tensorboard:
        outlets.append(TensorBoard(folder / "tensorboard" / phase, resume_step))
    if run.wandb != "off":
        outlets.append(WandB(folder, phase, run))
    return outlets


class MetricsFile:
    """One JSON object a line."""

    def __init__(self, path: Path, phase: str, resume_step: int) -> None:
        if path.exists():
            drop_later_lines(path, phase, resume_step)
        self.path = path
        self.stream: IO[str] = path.open("a", encoding="utf-8")

    def put(self, line: dict[str, Any]) -> None:
        finite = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in line.items()}
        self.stream.write(json.dumps(finite, allow_nan=False) + "\n")
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


class TensorBoard:
    """Scalars by phase."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(f"run.tensorboard: needs the package tensorboard ({error})") from error
        self.path = folder
        # purge_step hides what a run that is resumed had written past the step it resumes from.
        self.writer = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def put(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if isinstance(value, float):
                self.writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of each phase, in the group of the run's name; numbers over `step`, which may be logged twice on resume."""

    def __init__(self, folder: Path, phase: str, run: RunConfig) -> None:
        require_outlets(run)
        os.environ.update(WANDB_QUIET)
        import wandb

        self.path = folder / "wandb"
        quiet = wandb.Settings(
            console="off", disable_code=True, disable_git=True, x_disable_machine_info=True, x_disable_meta=True,
            x_disable_stats=True, x_save_requirements=False, silent=True,
        )  # fmt: skip
        mode = "online" if run.wandb == "online" else "offline"
        self.run = wandb.init(
            project="partialkd", group=run.name, name=f"{run.name}/{phase}", job_type=phase, dir=str(folder),
            mode=mode, settings=quiet, reinit="create_new",
        )  # fmt: skip
        self.run.define_metric("*", step_metric="step")

    def put(self, line: dict[str, Any]) -> None:
        numbers = {name: value for name, value in line.items() if isinstance(value, float) and math.isfinite(value)}
        self.run.log({"step": line["step"], "epoch": line["epoch"], **numbers})

    def close(self) -> None:
        self.run.finish()


def drop_later_lines(path: Path, phase: str, resume_step: int) -> None:
    """Rewrite metrics.jsonl without this phase's lines past `resume_step`, and without a line cut short at the end."""
    kept = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a file of metrics: {error}") from error
    for number, text in enumerate(lines, start=1):
        if not text.endswith("\n"):
            continue  # the run died while writing it
        try:
            line = json.loads(text)
            later = line["phase"] == phase and line["step"] > resume_step
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not a line of metrics: {error!r}") from error
        if not later:
            kept.append(text)
    if kept != lines:
        write_text(path, "".join(kept))
