"""The learning rate as a pure function of the optimiser step.

rate(step) = optimizer.lr * factor(step), step = 0 for the first optimiser step.

Warm-up multiplies by (step + 1) / (warmup_steps + 1) while step < warmup_steps: the first step is never at full
rate, and the first step after the warm-up is the first at full rate. `poly` and `cosine` go from 1 to
`schedule.final` between the end of the warm-up and the end of the schedule; the milestones of `step` count from
step 0, and a milestone epoch e (zero-based) begins at step e * steps_per_epoch. Past the end the last value stays.
Differs from the published schedules: those start the warm-up at rate 0 or skip it, both of which the first step sees.

Raises: `ConfigError` naming the key when a setting has no effect or leaves nothing to do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from partialkd.config import PhaseConfig, ScheduleConfig
from partialkd.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """A schedule laid over a run: all lengths in optimiser steps."""

    config: ScheduleConfig
    steps_per_epoch: int
    total_steps: int

    @classmethod
    def of_phase(cls, phase: PhaseConfig, micro_steps: int, key: str = "student") -> Schedule:
        """Lay the schedule over a phase whose epoch has `micro_steps`; `max_steps` does not shorten it."""
        steps_per_epoch = micro_steps // phase.accumulation
        if steps_per_epoch < 1:
            raise ConfigError(
                f"{key}.global_batch: an epoch must hold at least one global batch, got {phase.global_batch}"
            )
        schedule = cls(phase.schedule, steps_per_epoch, total_steps(phase.epochs, steps_per_epoch))
        schedule._check(f"{key}.schedule")
        return schedule

    def factor(self, step: int) -> float:
        """Factor on the learning rate at optimiser step `step`."""
        return warmup(self.config.warmup_steps, step) * self._decay(step)

    def _decay(self, step: int) -> float:
        config = self.config
        if config.name == "step":
            return config.factor ** milestones_passed(self._milestones(), step)
        done = progress(step, config.warmup_steps, self.total_steps)
        if config.name == "poly":
            return config.final + (1 - config.final) * (1 - done) ** config.power
        if config.name == "cosine":
            return config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2
        return 1.0

    def _milestones(self) -> tuple[int, ...]:
        return self.config.milestone_steps or tuple(
            epoch * self.steps_per_epoch for epoch in self.config.milestone_epochs
        )

    def _check(self, key: str) -> None:
        config = self.config
        given = "milestone_epochs" if config.milestone_epochs else "milestone_steps" if config.milestone_steps else None
        if given and config.name != "step":
            raise ConfigError(f'{key}.{given}: only with {key}.name = "step", got "{config.name}"')
        if config.name == "step" and not given:
            raise ConfigError(
                f'{key}.milestone_epochs: {key}.name = "step" needs milestone_epochs or milestone_steps, got none'
            )
        if config.warmup_steps >= self.total_steps:
            raise ConfigError(
                f"{key}.warmup_steps: must be below the {self.total_steps} steps of the run, got {config.warmup_steps}"
            )


def total_steps(epochs: float, steps_per_epoch: int) -> int:
    """Optimiser steps of a run; a fraction of an epoch is rounded to whole steps, at least one."""
    return max(1, round(epochs * steps_per_epoch))


def warmup(warmup_steps: int, step: int) -> float:
    """Factor of the warm-up, 1 from step `warmup_steps` on."""
    return min(1.0, (step + 1) / (warmup_steps + 1))


def progress(step: int, start: int, end: int) -> float:
    """Share of the way from step `start` to step `end`, in [0, 1]."""
    return min(1.0, max(0.0, (step - start) / (end - start)))


def milestones_passed(milestones: tuple[int, ...], step: int) -> int:
    """Count the milestones (in steps) that have begun at `step`."""
    return sum(step >= milestone for milestone in milestones)
