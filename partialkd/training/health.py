"""The health of a phase in training: what the trainer asks of it in a step, and what ends the phase or skips the step.

A step whose loss or gradient is not finite, on any rank, ends the phase (`health.on_nonfinite = "stop"`) with an error
that names step, rank, records and the newest checkpoint; with "skip" it is left out on all ranks: student, moments,
running statistics and centres, moving averages too, are then bit for bit what they were before it, it does not count
as a step (neither for the schedule nor for `max_steps`), its samples are passed over, and after `health.max_skipped`
of them the phase ends. Skipping looks at every norm before the step, which waits for the device once a step.

Every `health.check_every` steps (and before each checkpoint, so that nothing bad is saved) the ranks look together:
- at the norms since the last time. "stop" at ZeRO stage 0 learns of a bad step here; stages 1-3 and "skip" at once;
- at the teacher: a checksum of its parameters and buffers;
- at the centres and their moments: a slice of each shard a step, all of it in `check_every` steps; of centres in host
  memory the rows that a step took, on the device;
- at the student's parameters, which at stages 0-2 must be equal on all ranks, bit for bit (ranks of one kind of device;
  at stages 1-2 a changed copy is written over in the next step, so it is seen in the step that changed it only).
  At stage 3 each value is on one rank alone and there is nothing to compare; BatchNorm's buffers differ by design.
An alarm that ends nothing: a logged loss more than `health.spike_factor` deviations (median absolute ones, as of a
normal distribution) above the median of the last `WINDOW` logged. Differs after a resume: the window begins anew.

Errors: PartialKDError, the same on every rank.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partialkd.centres import Centres
from partialkd.config import Config
from partialkd.context import RunContext
from partialkd.data.batch import FaceBatch
from partialkd.errors import PartialKDError
from partialkd.teacher.network import Teacher
from partialkd.training.nonfinite import GradientWatch, MicroStep, explain, watched
from partialkd.training.silent_changes import CentreSweep, Frozen, replica_problem
from partialkd.training.student import Student

_log = logging.getLogger(__name__)

WINDOW, ENOUGH = 32, 8  # logged losses compared with, and how many there must be
LEAST_DEVIATION = 0.01  # of the median: a loss that hardly moves is not alarming when it does


def skipping(config: Config) -> bool:
    """Say whether a step that is not finite is left out instead of ending the phase."""
    return config.health.on_nonfinite == "skip"


class Health:
    """Looks after one phase on one rank.

    Where steps may be left out (`skipping`), the student must be guarded and the centres undoable.
    """

    def __init__(
        self,
        name: str,
        context: RunContext,
        student: Student,
        centres: Centres,
        teacher: Teacher | None,
        newest: Callable[[], Path | None],
    ) -> None:
        """newest: finds the last good checkpoint, for messages."""
        self.name, self.config, self.world, self.source = name, context.config.health, context.world, context.source
        self.student, self.centres, self.newest = student, centres, newest
        self.skipping = skipping(context.config)
        self.skipped = 0
        self.spikes = Spikes(self.config.spike_factor)
        self._gradients = GradientWatch(student.engine.module, dropped=student.phase.zero_stage >= 2)
        student.before_reduction(self._gradients.finish)
        self._sweep = CentreSweep(centres.store, self.config.check_every)
        self._teacher = Frozen(teacher.network) if teacher else None
        self._micro_steps: list[MicroStep] = []  # of the step under way
        self._unseen: list[tuple[int, Tensor, list[MicroStep]]] = []  # step, its norm on the device, its micro-steps

    def watch(
        self, batch: FaceBatch, student: Tensor, teacher: Tensor | None, loss: Tensor, gradient: Tensor
    ) -> Tensor:
        """Return the gradient (b, D) of the embeddings to go on with: all NaN if anything is not finite."""
        kept, gradient = watched(batch, student, teacher, loss, gradient)
        self._micro_steps.append(kept)
        self._gradients.next_into(kept)
        return gradient

    def stepped(self) -> None:
        """Note an optimiser step that was taken, and check when that is due; collective."""
        if self.student.phase.zero_stage == 0 and not self.skipping:  # otherwise the norm has been looked at
            self._unseen.append((self.student.steps, self.student.norm, self._micro_steps))
        self._micro_steps = []
        self._sweep.step(self.centres.working)
        if self.student.steps % self.config.check_every == 0:
            self.check()

    def failed(self) -> None:
        """Raise for an optimiser step whose gradient is not finite, or put everything back; collective."""
        micro_steps, self._micro_steps = self._micro_steps, []
        text = self._nonfinite(self.student.steps + 1, micro_steps)
        if not self.skipping:
            raise PartialKDError(text)
        self.skipped += 1
        if self.skipped > self.config.max_skipped:
            raise PartialKDError(f"{text}; health.max_skipped = {self.config.max_skipped} such steps were left out")
        self.centres.skip()
        self._warn(f"{text}; left out, {self.skipped} of at most {self.config.max_skipped}")

    def check(self, everything: bool = False) -> None:
        """Look for all that can be wrong between two steps; `everything`: in all centres, before saving; collective."""
        unseen, self._unseen = self._unseen, []
        norms = torch.stack([norm for _, norm, _ in unseen]).tolist() if unseen else []
        for norm, (step, _, micro_steps) in zip(norms, unseen, strict=True):
            if not math.isfinite(norm):
                raise PartialKDError(self._nonfinite(step, micro_steps))
        self.centres.settle()
        own = [self._teacher.problem() if self._teacher else None, self._sweep.problem(everything)]
        self._end(self.world.gather_objects("; ".join(problem for problem in own if problem)))
        if self.student.phase.zero_stage < 3 and self.world.size > 1:
            problem = replica_problem(self.student.engine.module, self.world)
            self._end([problem] if problem else [])

    def logged(self, loss: float) -> dict[str, float]:
        """Look at a logged loss -> counters for the log, those that are not zero."""
        alarm = self.spikes.look(loss)
        if alarm:
            self._warn(f"{self.name}: the loss of step {self.student.steps} is {alarm}")
        counters = {"skipped": float(self.skipped), "spikes": float(self.spikes.count)}
        return {key: value for key, value in counters.items() if value}

    def state(self) -> dict[str, int]:
        """Say what a resumed phase goes on counting from."""
        return {"skipped": self.skipped}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`; checkpoints of before have no such count."""
        self.skipped = state.get("skipped", 0)

    def close(self) -> None:
        """Take the hooks off the student."""
        self._gradients.close()

    def _nonfinite(self, step: int, micro_steps: list[MicroStep]) -> str:
        cause = explain(micro_steps, self.source, self.centres.store, self.world)
        return f"{self.name}: loss or gradient of step {step} not finite: {cause}; {self._last_good()}"

    def _end(self, problems: list[str]) -> None:
        found = [f"rank {rank}: {text}" if len(problems) > 1 else text for rank, text in enumerate(problems) if text]
        if found:
            step = self.student.steps
            raise PartialKDError(f"{self.name}: at step {step}: {'; '.join(found)}; {self._last_good()}")

    def _last_good(self) -> str:
        return f"last good checkpoint: {self.newest() or 'none yet'}"

    def _warn(self, text: str) -> None:
        if self.world.is_main:
            _log.warning(text)


class Spikes:
    """Losses that stand out from those before them."""

    def __init__(self, factor: float) -> None:
        self.factor, self.count = factor, 0
        self._window: deque[float] = deque(maxlen=WINDOW)

    def look(self, loss: float) -> str | None:
        """Say what is alarming about this loss, or None."""
        before, alarm = list(self._window), None
        self._window.append(loss)
        if self.factor and len(before) >= ENOUGH:
            median = statistics.median(before)
            deviation = 1.4826 * statistics.median(abs(x - median) for x in before)
            limit = median + self.factor * max(deviation, LEAST_DEVIATION * abs(median))
            if loss > limit:
                self.count += 1
                alarm = f"{loss:.4g}, more than {self.factor:g} deviations above {median:.4g}, the recent median"
        return alarm
