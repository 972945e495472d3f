"""A small network, training cases and loops that the tests of Student share; a plain torch loop is the reference.

Each rank is given the gradient of its own mean loss, worked out by hand, as the trainer does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from partialkd.config import ArcFaceConfig, ModelConfig, OptimizerConfig, PhaseConfig, ScheduleConfig
from partialkd.training.student import Student
from partialkd.world.world import World

STAGES = (0, 1, 2, 3)
GLOBAL_BATCH = 12
SIDE = 8
DIM = 6
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "clip_norm": 0.5}
ADAMW = {"name": "adamw", "lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.05, "clip_norm": 0.5}


@dataclass(frozen=True)
class Case:
    stage: int = 0
    optimizer: dict[str, Any] = field(default_factory=lambda: SGD)
    accumulation: int = 1
    steps: int = 4
    phase: dict[str, Any] = field(default_factory=lambda: {"freeze_batchnorm": True})
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "constant"})
    channels_last: bool = False


@dataclass
class Outcome:
    losses: list[float] = field(default_factory=list)  # mean over the global batch, each step
    norms: list[float | None] = field(default_factory=list)
    network: dict[str, Tensor] = field(default_factory=dict)
    extra: Any = None


class Net(nn.Module):
    """Convolutions, both BatchNorms, PReLU, a bias, and a scale that does not train (as iresnet's last one)."""

    head_modules = ("fc", "features")

    def __init__(self, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.PReLU(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8 * (SIDE // 2) ** 2, DIM)
        self.features = nn.BatchNorm1d(DIM)
        self.features.weight.requires_grad = False

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv(images)))
        x = (x + self.conv2(x)).flatten(1)
        return self.features(self.fc(x).float())


def make_phase(case: Case) -> PhaseConfig:
    return PhaseConfig(
        model=ModelConfig(name="iresnet18"),
        method=ArcFaceConfig(name="arcface"),
        optimizer=OptimizerConfig(**case.optimizer),
        schedule=ScheduleConfig(**case.schedule),
        epochs=1.0,
        global_batch=GLOBAL_BATCH,
        accumulation=case.accumulation,
        zero_stage=case.stage,
        **case.phase,
    )


def make_student(case: Case, world: World, model: nn.Module | None = None) -> Student:
    model = model or Net()
    if case.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Student(model, make_phase(case), world, micro_steps=20 * case.accumulation)


def global_batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    images = torch.randn(GLOBAL_BATCH, 3, SIDE, SIDE, generator=draw)
    return images, torch.randn(GLOBAL_BATCH, DIM, generator=draw)


def _mine(step: int, micro_step: int, case: Case, world: World) -> tuple[Tensor, Tensor]:
    """This rank's share of a micro-step's share of the global batch."""
    images, targets = (x.chunk(case.accumulation)[micro_step].chunk(world.size)[world.rank] for x in global_batch(step))
    return images, targets


def advance(student: Student, case: Case, world: World, first: int, last: int) -> Outcome:
    """Optimiser steps first..last-1. Loss of a sample: half the squared distance to its target."""
    outcome = Outcome()
    for step in range(first, last):
        total = torch.zeros(())
        for micro_step in range(case.accumulation):
            images, targets = _mine(step, micro_step, case, world)
            embeddings = student.embed(images)
            assert embeddings.dtype is torch.float32
            difference = embeddings.detach() - targets
            total += difference.square().sum(1).mean() / 2
            student.backward(embeddings, difference / len(images))
            assert student.step() == (micro_step + 1 == case.accumulation)
        outcome.losses.append(float(world.mean(total / case.accumulation)))
        outcome.norms.append(student.grad_norm)
    return outcome


def reference(case: Case, lrs: list[float] | None = None) -> Outcome:
    """The same training in plain torch on the whole global batch."""
    model = Net().train()
    if case.phase.get("freeze_batchnorm"):
        model.bn.eval()
        model.features.eval()
    settings = dict(case.optimizer)
    clip = settings.pop("clip_norm")
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[settings.pop("name")]
    optimizer = kind([p for p in model.parameters() if p.requires_grad], **settings)
    outcome = Outcome()
    for step in range(case.steps):
        images, targets = global_batch(step)
        optimizer.zero_grad()
        loss = (model(images) - targets).square().sum(1).mean() / 2
        loss.backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        outcome.norms.append(float(nn.utils.clip_grad_norm_(trained, clip or float("inf"))))
        for group in optimizer.param_groups:
            group["lr"] = lrs[step] if lrs else settings["lr"]
        optimizer.step()
        outcome.losses.append(loss.item())
    outcome.network = model.state_dict()
    return outcome


def assert_close(got: Outcome, expected: Outcome, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    torch.testing.assert_close(got.losses, expected.losses, rtol=rtol, atol=atol)
    torch.testing.assert_close(got.norms, expected.norms, rtol=rtol, atol=atol)
    assert got.network.keys() == expected.network.keys()
    for name, value in expected.network.items():
        torch.testing.assert_close({name: got.network[name]}, {name: value}, rtol=rtol, atol=atol)
