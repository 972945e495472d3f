"""How and where a run runs: nothing here changes what it computes, but the seed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from partialkd.config.base import Count, Positive, PositiveFloat, Section


class DistConfig(Section):
    timeout_s: PositiveFloat = 600.0  # a collective that waits longer than this ends the run
    device: Literal["auto", "cpu", "cuda"] = "auto"


class RunConfig(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # results go to <folder>/<name>
    folder: str = "runs"
    seed: Count = 0
    deterministic: bool = False
    log_every: Positive = 50  # optimiser steps
    checkpoint_every: Count = 1000  # optimiser steps; 0: only at the end of each phase
    keep_checkpoints: Positive = 2  # the newest
    keep_best: bool = False  # keep the checkpoint with the lowest mean loss too
    checkpoint_async: bool = False  # write in the background: a copy in host memory, training goes on meanwhile
    tensorboard: bool = True
