"""How and where a run runs: nothing here changes what it computes, but the seed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from partialkd.config.base import Before, Count, Free, NonNegativeFloat, Place, Positive, Section, Seed, Text


def _ordered(steps: tuple[int, int]) -> tuple[int, int]:
    if steps[0] > steps[1]:
        raise ValueError("must be [first, last] with first <= last")
    return steps


Steps = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


class DistConfig(Section):
    """Where ranks run and how long they wait for each other."""

    timeout_s: Annotated[float, Field(gt=0, le=1e7)] = 600.0  # a collective that waits longer than this ends the run
    device: Literal["auto", "cpu", "cuda"] = "auto"


class RunConfig(Section):
    """The run's name, its folder, and what it keeps and says."""

    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]  # results go to <folder>/<name>
    folder: Free[Place] = "runs"
    seed: Seed = 0
    deterministic: bool = False
    # CUDA: float32 convolutions and products in TF32, whose numbers have 10 bits; false: all of float32's. Not of bf16.
    tf32: Annotated[Free[bool], Before(False)] = False
    log_every: Free[Positive] = 50  # optimiser steps
    log_level: Free[Literal["debug", "info", "warning", "error"]] = "info"  # what is said, also in the log files
    checkpoint_every: Free[Count] = 1000  # optimiser steps; 0: only at the end of each phase
    keep_checkpoints: Free[Positive] = 2  # the newest
    keep_best: Free[bool] = False  # and the most accurate one on the evaluation sets: scores each when it is saved
    checkpoint_async: Free[bool] = False  # write in the background: a copy in host memory, training goes on meanwhile
    tensorboard: Free[bool] = False
    wandb: Free[Literal["off", "offline", "online"]] = "off"  # offline: into the run's folder, sent by `wandb sync`
    report: Free[bool] = True  # write report.html at the end
    profile_steps: Free[Steps | None] = None  # optimiser steps [first, last] of each phase to profile
    profile_ranks: Free[Annotated[tuple[Count, ...], Field(min_length=1)]] = (0,)  # those that there are


class HealthConfig(Section):
    """What is done when numbers go wrong. Nothing here changes what a healthy run computes."""

    on_nonfinite: Literal["stop", "skip"] = "stop"  # a loss or gradient that is not finite; skip: leave the step out
    max_skipped: Positive = 10  # steps a phase may leave out in all; skip
    check_every: Positive = 50  # optimiser steps between looks at losses, teacher, centres and the ranks' students
    spike_factor: NonNegativeFloat = 10.0  # deviations of the loss above its recent median that raise an alarm; 0: none
