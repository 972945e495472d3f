"""Runs of a tiny network that are taken up again: cases, their configurations, a trainer that keeps its labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from partialkd.centres.store import DTYPES, CentreStore
from partialkd.config import Config
from partialkd.config.load import parse_config
from partialkd.context import RunContext
from partialkd.data.sources.open import open_source
from partialkd.teacher.network import wrap_teacher
from partialkd.training import trainer
from partialkd.world import stop_signals as stopping
from partialkd.world.shard import shard_of
from partialkd.world.world import World

IMAGES, BATCH, DIM, SIDE = 62, 12, 8, 16  # five steps an epoch, two records left out of each
CHAIN = ((4, 2), (3, 5), (2, 7), (1, 8), (4, 10))  # ranks, and the step they stop at: in and between epochs
STEPS = CHAIN[-1][1]
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
ADAMW = {"name": "adamw", "lr": 0.005, "weight_decay": 0.05}
ARCFACE = {"name": "arcface", "scale": 16.0}
ADADISTILL = {"name": "adadistill", "scale": 16.0, "initial_centres": "exclude"}
MARGINDISTILLATION = {"name": "margindistillation", "scale": 16.0}
ADAFACE = {**ADADISTILL, "margin": {"name": "adaface", "t_alpha": 0.3, "geometry": 2.0, "geometry_warmup_steps": 6}}
ELASTIC = {"name": "trained_centres", "scale": 16.0, "margin": {"name": "elastic_arc", "std": 0.3}}


class TinyNet(nn.Module):
    """Two convolutions with their BatchNorms, PReLU, dropout and a linear layer: (b, 3, 16, 16) -> (b, 8)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.PReLU(8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)  # SyncBatchNorm would leave it no gradient
        self.bn2 = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(32, DIM)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.act(self.bn(self.conv(images)))))
        return self.fc(self.dropout(x.flatten(1))).float()


@dataclass(frozen=True)
class Case:
    name: str
    method: dict[str, Any]
    optimizer: dict[str, Any]
    stages: tuple[int, ...]  # ZeRO, of each leg of the chain
    accumulation: tuple[int, ...] = (1, 1, 1, 1, 1)
    centres: dict[str, Any] = field(default_factory=dict)
    memory: tuple[str, ...] = ("device",) * 5  # of the centres
    phase: dict[str, Any] = field(default_factory=lambda: {"freeze_batchnorm": True})
    identities: int = 23


CASES = (
    Case("trainable", ARCFACE, SGD, (0, 3, 1, 2, 0), (1, 2, 3, 2, 1), identities=IMAGES),
    Case(
        "sampled",
        ARCFACE,
        ADAMW,
        (2, 0, 3, 0, 2),
        centres={"sample_rate": 0.4},
        memory=("host", "device", "host", "host", "device"),
    ),
    Case("ema", ADADISTILL, SGD, (3, 1, 0, 2, 1)),
    Case("fixed", MARGINDISTILLATION, ADAMW, (1, 2, 1, 3, 2), phase={"sync_batchnorm": True}),
    Case("moving statistics", ADAFACE, SGD, (0, 2, 1, 0, 3)),
    Case("drawn", ELASTIC, SGD, (0, 1, 0, 2, 0), (1, 2, 3, 2, 1)),
)


def config_of(case: Case, leg: int, folder: Path, **changes: Any) -> Config:
    phase = {
        "model": {"name": "iresnet18", "embedding_dim": DIM}, "method": case.method, "optimizer": case.optimizer,
        "epochs": 3, "max_steps": CHAIN[leg][1], "global_batch": BATCH,
        "schedule": {"name": "cosine", "warmup_steps": 2},
        "zero_stage": case.stages[leg], "accumulation": case.accumulation[leg],
        "centres": {**case.centres, "memory": case.memory[leg]}, **case.phase, **changes,
    }  # fmt: skip
    tree: dict[str, Any] = {
        "run": {"name": "trial", "folder": str(folder), "log_every": 1, "tensorboard": False},
        "data": {
            "source": "synthetic", "path": "none", "image_size": SIDE, "loader": "jpeg", "workers": 1,
            "synthetic_identities": case.identities, "synthetic_images": IMAGES,
        },
        "teacher": {"source": "onnx", "path": "none", "embedding_dim": DIM},
        "student": phase,
    }  # fmt: skip
    return parse_config(tree)


class Watched(trainer.Trainer):
    """Keeps the labels of every optimiser step."""

    labels: list[list[int]]

    def micro_step(self, batch: Any) -> Any:
        if not self._outcomes:
            self.labels.append([])
        self.labels[-1] += batch.labels.tolist()
        return super().micro_step(batch)


@contextmanager
def opened(world: World, config: Config, dropout: float = 0.0) -> Iterator[Watched]:
    """A trainer of the tiny network, its teacher and its centres the same at any number of ranks."""
    torch.manual_seed(3)
    teacher = wrap_teacher(TinyNet(0.0).eval(), SIDE, world.device)
    source, phase, kind = open_source(config.data), config.student, config.student.method.centre_kind
    shard = shard_of(source.num_classes, world.rank, world.size)
    dtype, averaged = DTYPES[phase.centres.store], kind == "ema"
    store = CentreStore.random(shard, source.num_classes, DIM, dtype, world.device, seed=2, skip_unseen=averaged)
    stop, build = stopping.StopSignals(), trainer.build_model
    context = RunContext(config, world, source, Path(config.run.folder), stop)
    trainer.build_model = lambda *_: TinyNet(dropout)  # type: ignore[assignment]
    try:
        made = Watched("student", phase, context, store, teacher)
        made.labels = []
        yield made
        made.close()
    finally:
        trainer.build_model = build
        stop.forget()


def train(world: World, configs: list[Config], dropout: float = 0.0) -> list[dict[str, Any]]:
    """Go on with each run to its max_steps -> by run: labels of each step on all ranks, what this rank ends with."""
    results = []
    for config in configs:
        with opened(world, config, dropout) as made:
            network = made.run(resume=True)
            numbers = torch.rand(8).tolist()
            steps = zip(*world.gather_objects(made.labels), strict=True)
            labels = [sorted(chain.from_iterable(ranks)) for ranks in steps]
            results.append({
                "labels": labels, "network": network.state_dict(), "centres": made.store.read(slice(None)).clone(),
                "numbers": numbers, "buffers": made.student.local_state(),
            })  # fmt: skip
    return results


def losses_of(folder: Path, steps: int = STEPS) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]  # others are the scores of checkpoints
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    return [line["loss"] for line in lines]


LIVE = Case("live", ARCFACE, SGD, (0, 1, 0, 0, 0), phase={})
