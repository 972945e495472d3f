"""Trainers to which something is done on purpose, and what came of it: for the tests of health.py and drift.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.ranks import run
from partialkd.centres.store import CentreStore
from partialkd.config import Config
from partialkd.config.load import parse_config
from partialkd.context import RunContext
from partialkd.data.sources.open import open_source
from partialkd.errors import PartialKDError
from partialkd.models import build_model
from partialkd.teacher.network import wrap_teacher
from partialkd.training import trainer
from partialkd.world.shard import shard_of
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

CLASSES, IMAGES, STEPS = 11, 48, 5
METHOD: dict[str, dict[str, Any]] = {
    "arcface": {"name": "arcface", "scale": 16.0},
    "adadistill": {"name": "adadistill", "scale": 16.0, "initial_centres": "exclude"},
    "adaface": {"name": "adadistill", "scale": 16.0, "margin": {"name": "adaface"}, "initial_centres": "exclude"},
    "curricular": {"name": "trained_centres", "scale": 16.0, "margin": {"name": "curricular"}},
}
BAD = 2  # optimiser steps done when the injection comes: the third step is the bad one

Injection = Callable[["Injected", Any], Any]


def config_of(
    folder: Path,
    method: str = "arcface",
    health: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **phase: Any,
) -> Config:
    often = {"log_every": 1, "checkpoint_every": 1}
    tree: dict[str, Any] = {
        "run": {"name": "trial", "folder": str(folder), "tensorboard": False, **often, **(run or {})},
        "data": {
            "source": "synthetic", "path": "none", "image_size": 16, "loader": "jpeg", "workers": 1,
            "synthetic_identities": CLASSES, "synthetic_images": IMAGES, **(data or {}),
        },
        "teacher": {"source": "onnx", "path": "none", "embedding_dim": 8},
        "student": {
            "model": {"name": "iresnet18", "embedding_dim": 8, "width": 0.0625, "depth": 0.5},
            "method": METHOD[method], "epochs": 3, "max_steps": STEPS, "global_batch": 12, "optimizer": {"lr": 0.05},
            "schedule": {"name": "constant"}, **phase,
        },
        "health": health or {},
    }  # fmt: skip
    return parse_config(tree)


class Injected(trainer.Trainer):
    """Something is done to it on its last rank: before the micro-step number BAD * accumulation + `late`, and `times`
    micro-steps from there."""

    injection: Injection | None = None
    late = 0
    times = 1
    seen = 0

    def micro_step(self, batch: Any) -> Any:
        due = 0 <= self.seen - BAD * self.phase.accumulation - self.late < self.times
        self.seen += 1
        if due and self.injection and self.world.rank == self.world.size - 1:
            batch = type(self).injection(self, batch) or batch  # type: ignore[misc]
        return super().micro_step(batch)


def make(world: World, config: Config, injection: Injection | None = None, **when: int) -> tuple[Injected, StopSignals]:
    torch.manual_seed(3)
    teacher = wrap_teacher(build_model(config.student.model, 16).eval(), 16, world.device)
    shard, averaged = shard_of(CLASSES, world.rank, world.size), config.student.method.centre_kind == "ema"
    store = CentreStore.random(shard, CLASSES, 8, torch.float32, world.device, seed=2, skip_unseen=averaged)
    stop = StopSignals()
    context = RunContext(config, world, open_source(config.data), Path(config.run.folder), stop)
    kind = type("Once", (Injected,), {"injection": injection, **when})
    return kind("student", config.student, context, store, teacher), stop


def train(world: World, config: Config, injection: Injection | None, when: dict[str, int]) -> dict[str, Any]:
    """-> what the run was at its end (student, moments, buffers, centres), and its metrics."""
    one, stop = make(world, config, injection, **when)
    if injection is None and when:
        one.loader.epoch = partial(without, one.loader.epoch, config.student.accumulation)  # type: ignore[method-assign]
    try:
        one.run(False)
        state = {**one.student.state(), **one.student.local_state(), **one.store.state(), **one.states.state()}
        state = {key: value.clone() for key, value in state.items()}
    finally:
        one.close()
        stop.forget()
    world.barrier()
    lines = (Path(config.run.folder) / "metrics.jsonl").read_text().splitlines()
    return {"state": state, "lines": [json.loads(line) for line in lines]}


def without(epoch: Any, accumulation: int, number: int, first: int = 0) -> Any:
    """The batches of an epoch but for those of the bad step, which is in epoch 0."""
    for place, batch in enumerate(epoch(number, first), start=first):
        if number or place // accumulation != BAD:
            yield batch


def stopped_by(config: Config, size: int, injection: Injection, **when: int) -> str:
    """Train and fail -> the error, which every rank must have raised; no centre took part in it."""
    found = run(caught, size, config, injection, when)
    assert len(set(found)) == 1, found
    problem, finite = found[0]
    assert finite == (injection is not bad_centre)
    return problem


def caught(world: World, config: Config, injection: Injection, when: dict[str, int]) -> tuple[str, bool]:
    one, stop = make(world, config, injection, **when)
    try:
        with pytest.raises(PartialKDError) as error:
            one.run(False)
    finally:
        one.close()
        stop.forget()
    finite = all(bool(value.isfinite().all()) for value in one.store.state().values())
    return str(error.value), all(world.gather_objects(finite))


# -------------------------------------------------------------------------------------------------- injections


def bad_image(one: Injected, batch: Any) -> Any:
    images = batch.images.clone()
    images[1, 0, 3, 4] = float("nan")
    return replace(batch, images=images)


def bad_teacher(one: Injected, batch: Any) -> None:
    assert one.teacher is not None
    real = one.teacher.embed

    def embed(images: Tensor) -> Tensor:
        one.teacher.embed = real
        rows = real(images).clone()
        rows[2, 0] = float("inf")
        return rows

    one.teacher.embed = embed


PARAMETER = "layer3.0.conv1.weight"


class Overflow(torch.autograd.Function):
    """Hands its input on; its gradient is infinite in one place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone()
        gradient.view(-1)[3] = float("inf")
        return gradient


def bad_gradient(one: Injected, batch: Any) -> None:
    """In the middle of the network, on this rank only: everything before it in the backward pass is finite."""
    module = one.student.engine.module.get_submodule(PARAMETER.removesuffix(".weight"))

    def once(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        handle.remove()
        return Overflow.apply(output)

    handle = module.register_forward_hook(once)


def flipped_parameter(one: Injected, batch: Any) -> None:
    parameter = one.student.engine.module.get_parameter(PARAMETER)
    parameter.data.view(-1).view(torch.int32)[5] ^= 1


def other_teacher(one: Injected, batch: Any) -> None:
    """As a network in training mode would, but past torch's own count of writes."""
    assert one.teacher is not None
    next(iter(one.teacher.network.buffers())).data.view(-1)[0] += 1e-3


def bad_variance(one: Injected, batch: Any) -> None:
    """Of BatchNorm in training, which does not read it: no loss and no gradient of this phase tells."""
    variance = next(x for name, x in one.student.engine.module.named_buffers() if name.endswith("running_var"))
    variance[1] = float("inf")


def bad_centre(one: Injected, batch: Any) -> None:
    one.store.unit[1, 3] = float("inf")
