"""What a run says of itself while it runs: a bar or log lines, metrics.jsonl, TensorBoard. Rank 0 only.

metrics.jsonl: one object a logged step, in the order written: `phase`, `step` (optimiser steps done), `epoch`,
`loss`, `lr`, `images_per_s` (all ranks), then the method's own values; a number that is not finite is null.
A resumed phase drops its own lines past the step it resumes from, so no step occurs twice; other phases' lines
stay. A line cut short by a crash is dropped too.
On a terminal a rich bar shows speed, time left and the last values; elsewhere (cluster logs, CI) each logged step
is one plain line. TensorBoard gets the same numbers under <folder>/tensorboard/<phase>.
Errors: `ConfigError` if TensorBoard is asked for and not installed; `DataError` for a metrics.jsonl that is something
else, on rank 0; `OSError` from the disk.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from partialkd.errors import ConfigError, DataError
from partialkd.storage.atomic_files import write_text
from partialkd.world.world import World

METRICS = "metrics.jsonl"
RESERVED = ("phase", "step", "epoch", "loss", "lr", "images_per_s")


class Progress:
    """`with Progress(...) as progress:` and `progress.log(...)` on every rank; ranks but 0 say nothing."""

    def __init__(
        self, folder: Path, phase: str, total_steps: int, world: World, tensorboard: bool, resume_step: int = 0
    ) -> None:
        self.phase, self.total_steps = phase, total_steps
        self._clock = _Clock(resume_step)
        self._outlets: list[_Outlet] = []
        if not world.is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._outlets.append(_MetricsFile(folder / METRICS, phase, resume_step))
        if tensorboard:
            self._outlets.append(_TensorBoard(folder / "tensorboard" / phase, resume_step))
        terminal = Console().is_terminal
        self._outlets.append(_TerminalBar(phase, total_steps, resume_step) if terminal else _PlainLines(total_steps))

    def log(self, step: int, epoch: int, loss: float, lr: float, images_per_s: float, values: dict[str, float]) -> None:
        """One logged optimiser step; `values` are the method's own numbers, under names of their own."""
        taken = [name for name in values if name in RESERVED]
        if taken:
            raise ValueError(f"values must not be named like the step's own numbers, got {taken}")
        numbers = {"loss": loss, "lr": lr, "images_per_s": images_per_s, **values}
        line = {"phase": self.phase, "step": step, "epoch": epoch, **{name: float(x) for name, x in numbers.items()}}
        seconds_left = self._clock.seconds_left(step, self.total_steps)
        for outlet in self._outlets:
            outlet.put(line, seconds_left)

    def close(self) -> None:
        for outlet in self._outlets:
            outlet.close()
        self._outlets = []

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Throughput:
    """Images a second over all ranks between two calls, from the number of optimiser steps done."""

    def __init__(self, global_batch: int, step: int = 0) -> None:
        self.global_batch = global_batch
        self._step, self._time = step, time.perf_counter()

    def since_last(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self._step) * self.global_batch / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        return rate


class _Clock:
    """Time left, from the steps done in this process."""

    def __init__(self, first_step: int) -> None:
        self.first_step, self.start = first_step, time.perf_counter()

    def seconds_left(self, step: int, total_steps: int) -> float:
        done = max(1, step - self.first_step)
        return (time.perf_counter() - self.start) / done * max(0, total_steps - step)


# ------------------------------------------------------------------------------------------------- outlets


class _Outlet(Protocol):
    """Where a logged step goes."""

    def put(self, line: dict[str, Any], seconds_left: float, /) -> None: ...

    def close(self) -> None: ...


class _MetricsFile:
    def __init__(self, path: Path, phase: str, resume_step: int) -> None:
        if path.exists():
            drop_later_lines(path, phase, resume_step)
        self.stream: IO[str] = path.open("a", encoding="utf-8")

    def put(self, line: dict[str, Any], _: float) -> None:
        finite = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in line.items()}
        self.stream.write(json.dumps(finite, allow_nan=False) + "\n")
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


class _TensorBoard:
    def __init__(self, folder: Path, resume_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(f"run.tensorboard: needs the package tensorboard ({error})") from error
        # purge_step hides what a run that is resumed had written past the step it resumes from.
        self.writer = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def put(self, line: dict[str, Any], _: float) -> None:
        for name, value in line.items():
            if isinstance(value, float):
                self.writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self.writer.close()


class _PlainLines:
    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def put(self, line: dict[str, Any], seconds_left: float) -> None:
        done = f"{line['phase']} step {line['step']}/{self.total_steps} epoch {line['epoch']}"
        print(f"{done} {_numbers(line)} left {_hours(seconds_left)}", file=sys.stdout, flush=True)

    def close(self) -> None:
        """Nothing is held open."""


class _TerminalBar:
    def __init__(self, phase: str, total_steps: int, resume_step: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
        )
        self.bar = Bar(*columns)
        self.task = self.bar.add_task(phase, total=total_steps, completed=resume_step, now="")
        self.bar.start()

    def put(self, line: dict[str, Any], seconds_left: float) -> None:
        now = f"epoch {line['epoch']} {_numbers(line)} left {_hours(seconds_left)}"
        self.bar.update(self.task, completed=line["step"], now=now)

    def close(self) -> None:
        self.bar.stop()


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
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: not a line of metrics: {error!r}") from error
        if not later:
            kept.append(text)
    if kept != lines:
        write_text(path, "".join(kept))


def _numbers(line: dict[str, Any]) -> str:
    shown = [
        f"{name} {value:.4g}" for name, value in line.items() if isinstance(value, float) and name != "images_per_s"
    ]
    return " ".join([*shown, f"{line['images_per_s']:.0f} images/s"])


def _hours(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
