"""Log lines or a bar, and the outlets (outlets.py): what a run says of itself while it runs. Rank 0 only.

metrics.jsonl: one object a logged step, in the order written: `phase`, `step` (optimiser steps done), `epoch`, `time`
(when it was logged, in UTC), `loss`, `lr`, `images_per_s` (all ranks), then the method's own values, `grad_norm`
(before clipping), `time/<part>` (seconds of an optimiser step, the mean over ranks and over the steps since the last
line; step_log.py says which parts) and `memory` (peak bytes of rank 0: of CUDA's allocator since the phase began, or of
the process); a number that is not finite is null. `teacher_share` is the teacher's part of a step's time, where it
runs; `mfu` the part of it that the step's products would take at the full rate of the GPU, as its maker says, if
partialkd.planner.devices knows it. With `run.keep_best` there are also lines of scored checkpoints, with `phase`,
`step`, `epoch`, `time`, `accuracy/<set>`, `auc/<set>` and `tar@<far>/<set>` of every set (without rates of too few
impostors), each with the ends of its interval (`accuracy_low/<set>`, `accuracy_high/<set>`), and `scoring_s`, the
seconds that the scoring took. A resumed phase drops its own lines past the step it resumes from, so no step occurs
twice; other phases' lines stay. A line cut short by a crash is dropped too.
On a terminal a bar shows steps, time left and the last values; elsewhere (cluster logs, CI) each logged step is one
line, and there is one now and then before the first. An outlet that fails while the run goes on, because a disk is
full, is dropped with a warning: no run ends because of what it says of itself.
Errors, at the start only: those of the outlets, on rank 0.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from partialkd.config import RunConfig
from partialkd.evaluate.cells import between
from partialkd.evaluate.pairs import PairScores
from partialkd.training.outlets import Outlet, open_outlets
from partialkd.world.messages import Screen
from partialkd.world.passes import Pass, hours
from partialkd.world.world import World

RESERVED = ("phase", "step", "epoch", "time", "loss", "lr", "images_per_s")
# How the names of what is measured begin; the rest is computed.
MEASURED = ("images_per_s", "time", "memory", "scoring_s", "teacher_share", "mfu")
QUIET = ("images_per_s", "time/", "memory")  # what the log's lines leave out
_log = logging.getLogger(__name__)


class Progress:
    """`with Progress(...) as progress:` and `progress.log(...)` on every rank; ranks but 0 say nothing."""

    def __init__(
        self, folder: Path, phase: str, total_steps: int, world: World, run: RunConfig, resume_step: int = 0
    ) -> None:
        """run: which outlets beside the log and metrics.jsonl."""
        self.phase, self.total_steps = phase, total_steps
        self._outlets: list[Outlet] = []
        self._pass: Pass | None = None
        if not world.is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._outlets = open_outlets(folder, phase, resume_step, run)
        self._pass = Pass(phase, total_steps, "steps", resume_step)

    def stepped(self) -> None:
        """One optimiser step was done."""
        if self._pass:
            self._pass.add()

    def log(self, step: int, epoch: int, loss: float, lr: float, images_per_s: float, values: dict[str, float]) -> None:
        """One logged optimiser step; `values` are the method's own numbers, under names of their own."""
        taken = [name for name in values if name in RESERVED]
        if taken:
            raise ValueError(f"values must not be named like the step's own numbers, got {taken}")
        if self._pass is None:
            return
        line = self._put(step, epoch, {"loss": loss, "lr": lr, "images_per_s": images_per_s, **values})
        self._say(self._pass, line)

    def scored(self, step: int, epoch: int, scores: dict[str, PairScores], seconds: float) -> None:
        """One scored checkpoint, with scores by set; `seconds`: what the scoring took, which is no training."""
        if self._pass is None:
            return
        self._pass.leave_out(seconds)
        numbers, said = {}, []
        for name, one in scores.items():
            for key, (value, ends) in one.numbers().items():
                numbers[f"{key}/{name}"] = value
                numbers |= {f"{key}_{end}/{name}": at for end, at in zip(("low", "high"), ends, strict=False)}
                said.append(f"{key}/{name} {value:.4g}{between(ends or None, 1, 3)}")
        self._put(step, epoch, {**numbers, "scoring_s": seconds})
        shown = " ".join(said)
        _log.info(f"{self.phase} step {step}/{self.total_steps} scored in {seconds:.1f} s: {shown}")

    def _put(self, step: int, epoch: int, numbers: dict[str, float]) -> dict[str, Any]:
        """Write a line to all outlets -> the line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"phase": self.phase, "step": step, "epoch": epoch, "time": now}
        line |= {name: float(x) for name, x in numbers.items()}
        for outlet in list(self._outlets):
            self._attempt(outlet, lambda outlet=outlet: outlet.put(line))  # type: ignore[misc]
        return line

    def _say(self, going: Pass, line: dict[str, Any]) -> None:
        going.done = line["step"]
        going.note = f"epoch {line['epoch']} {_numbers(line)}"
        if Screen.stream() is None:
            left = going.seconds_left()
            _log.info(
                f"{self.phase} step {line['step']}/{self.total_steps} {going.note}"
                + (f" left {hours(left)}" if left is not None else "")
            )
            going.told()

    def _attempt(self, outlet: Outlet, action: Callable[[], None]) -> None:
        """Act; an outlet that the disk fails is dropped."""
        try:
            action()
        except OSError as error:
            self._outlets.remove(outlet)
            with suppress(OSError):  # what it could not write before it cannot write now
                outlet.close()
            _log.warning(f"{outlet.path}: cannot be written to any more ({error.strerror}); the run goes on without it")

    def close(self) -> None:
        """Close what was written to."""
        for outlet in list(self._outlets):
            self._attempt(outlet, outlet.close)
        self._outlets = []

    def __enter__(self) -> Progress:
        if self._pass:
            self._pass.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pass:
            self._pass.__exit__(kind, error, trace)
        self.close()


class Throughput:
    """Images a second over all ranks between two calls, from the number of optimiser steps done."""

    def __init__(self, global_batch: int, step: int = 0) -> None:
        self.global_batch = global_batch
        self._step, self._time = step, time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Do not count these seconds, since the last call: what was done in them was no training."""
        self._time += seconds

    def since_last(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self._step) * self.global_batch / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        return rate


def _numbers(line: dict[str, Any]) -> str:
    shown = [
        f"{name} {value:.4g}" for name, value in line.items() if isinstance(value, float) and not name.startswith(QUIET)
    ]
    return " ".join([*shown, f"{line['images_per_s']:.0f} images/s"])
