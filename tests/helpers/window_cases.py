"""Centres in host memory: settings, and steps of them beside those on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helpers import dense
from helpers.centre_cases import ADAMW, SCALE, SEED, SGD, method_of, problem, store_of
from partialkd.centres import Centres
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.centres.store import DTYPES
from partialkd.config import CentresConfig
from partialkd.world.world import World

CLASSES, BATCH, DIM = 32, 12, 8
RATE = 0.4  # two of five blocks a step
Settings = dict[str, Any]


def made(world: World, name: str, settings: Settings, memory: str, accumulation: int = 1) -> Centres:
    """`exact`: a float64 store. `unseen`: every so many classes have not been seen and are no negatives yet."""
    kept = dict(settings)
    optimizer, exact, unseen = kept.pop("optimizer", SGD), kept.pop("exact", False), kept.pop("unseen", None)
    method, config = method_of(name), CentresConfig(**{"sample_rate": RATE, "memory": memory, **kept})
    p = problem(classes=CLASSES)
    p.seen[:: unseen or CLASSES] = not unseen
    store = store_of(
        p, world, method.config.centre_kind, torch.float64 if exact else DTYPES[config.store], bool(unseen)
    )
    if memory == "device":
        for key, value in vars(store).items():
            setattr(store, key, value.to(world.device) if isinstance(value, Tensor) else value)
    rows = make_row_optimizer(store, optimizer, config) if method.config.centre_kind == "trainable" else None
    return Centres(store, world, SCALE, config, SEED, rows, accumulation, undoable=True)


def go_on(centres: Centres, name: str, steps: range, splits: int = 1, skip: bool = False) -> list[Tensor]:
    """Optimiser steps on a batch each, the last of which is left out with `skip` -> losses, gradients."""
    method, world, told = method_of(name), centres.world, []
    dtype = centres.store.length.dtype
    for step in steps:
        p = dense.make_problem(centres.store.num_classes, BATCH, DIM, seed=step)
        for part in torch.arange(BATCH).chunk(splits):
            mine = part.chunk(world.size)[world.rank]
            x, labels = p.student[mine].to(world.device, dtype).requires_grad_(), p.labels[mine].to(world.device)
            if method.config.centre_kind != "ema":
                centres.begin(x, labels)
            outcome = method.loss(centres, x, labels, p.teacher[mine].to(world.device, dtype))
            outcome.loss.backward()
            assert x.grad is not None
            told += [outcome.loss.detach().cpu(), x.grad.cpu()]
        if skip and step == steps[-1]:
            centres.skip()
        else:
            centres.step(0.05)
    return told


CASES: dict[str, tuple[str, Settings]] = {
    "fixed, fp32": ("arcdistill", {}),
    "fixed, int8": ("margindistillation", {"store": "int8"}),
    "ema, fp32": ("ada_weighted", {}),
    "ema, bf16": ("ada_weighted", {"store": "bf16"}),
    "ema, int8": ("ada_weighted", {"store": "int8"}),
    "SGD, fp32": ("arcface", {"optimizer": SGD}),
    "SGD, all bf16": ("arcface", {"optimizer": SGD, "store": "bf16", "moments": "bf16"}),
    "AdamW": ("cosface", {"optimizer": ADAMW}),
    "AdamW, row, bf16": ("cosface", {"optimizer": ADAMW, "second_moment": "row", "moments": "bf16"}),
}
