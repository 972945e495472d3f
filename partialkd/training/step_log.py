"""What is told of a step: means over its micro-steps and over the ranks, where its time went, how fast it was.

A step's time is told in PARTS, which sum to it, as the world's clock read them since the last line; what is not
training is left out of it (scoring).
"""

from __future__ import annotations

import torch

from partialkd.config import PhaseConfig
from partialkd.context import RunContext
from partialkd.methods import Outcome
from partialkd.training.progress import Progress, Throughput
from partialkd.world.part_clock import peak_memory
from partialkd.world.world import COLLECTIVES

# "other" is what lies between them: logging, checks, saving.
PARTS = (
    "data", "teacher", "student forward", "student backward", "student step", "centres", COLLECTIVES, "other",
)  # fmt: skip
LEFT_OUT = "scoring"


class StepLog:
    """For the steps of one phase from here on, on every rank; `with log.progress:` its lines are written."""

    def __init__(
        self, name: str, phase: PhaseConfig, context: RunContext, last_step: int, done: int,
        live_teacher: bool, least_seconds: float | None = None,
    ) -> None:  # fmt: skip
        """done: steps behind us. least_seconds: of a step at the device's full rate of products, if that is known."""
        self.phase, self.world = phase, context.world
        self._live_teacher, self._least_seconds, self._told = live_teacher, least_seconds, done
        self.progress = Progress(context.folder, name, last_step, context.world, context.config.run, done)
        self._speed = Throughput(phase.global_batch, done)

    def means(self, outcomes: list[Outcome], step: int) -> dict[str, float]:
        """Loss, the method's values and the parts of a step, means over micro-steps and ranks; one collective."""
        values = [{"loss": outcome.loss.detach(), **outcome.values} for outcome in outcomes]
        means = torch.stack([torch.stack([one[key].float() for one in values]).mean() for key in values[0]])
        names = [*values[0], *(f"time/{part}" for part in PARTS)]
        return dict(zip(names, self.world.mean(torch.cat([means, self._seconds(step, means)])).tolist(), strict=True))

    def _seconds(self, step: int, like: torch.Tensor) -> torch.Tensor:
        """Seconds (PARTS,) of a step since the last line."""
        seconds, steps = self.world.clock.read(), max(1, step - self._told)
        self._told = step
        parts = [seconds.get(part, 0.0) / steps for part in PARTS]
        return torch.tensor(parts, dtype=like.dtype, device=like.device)

    def log(self, step: int, epoch: int, loss: float, lr: float, values: dict[str, float]) -> None:
        """Write a line; `values` are those of `means` and others."""
        rate = self._speed.since_last(step)
        values = values | self._shares(rate, values) | {"memory": peak_memory(self.world.device)}
        self.progress.log(step, epoch, loss, lr, rate, values)

    def _shares(self, images_per_s: float, values: dict[str, float]) -> dict[str, float]:
        """Of the time of a step: the teacher's part, and the part that its products need at the device's full rate."""
        step_seconds, shares = self.phase.global_batch / images_per_s, {}
        if self._live_teacher:
            shares["teacher_share"] = values["time/teacher"] / step_seconds
        if self._least_seconds is not None:
            shares["mfu"] = self._least_seconds / step_seconds
        return shares

    def leave_out(self, seconds: float) -> None:
        """Do not count these seconds as training."""
        self._speed.leave_out(seconds)
