"""What tests of the teacher cache share: data, a teacher, its caches, and runs that learn from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.ranks import run
from partialkd.commands.embed import embed, output_of
from partialkd.config.load import parse_config
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.plan import BatchCut, TrainingPlan
from partialkd.data.packing.prepare import prepare
from partialkd.data.sources.open import open_source
from partialkd.errors import PartialKDError
from partialkd.models import build_model
from partialkd.models.saved import save_model
from partialkd.run.begin import prepare_job
from partialkd.run.job import make_teacher, run_phase
from partialkd.teacher.cache_writer import CacheWriter
from partialkd.teacher.network import Teacher, open_teacher
from partialkd.training.progress import MEASURED
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

IDENTITIES, IMAGES, DIM, BLOCK = 12, 8, 16, 20  # 96 records: four blocks of 20 and one of 16
RECORDS = IDENTITIES * IMAGES
MODEL = {"name": "mobilefacenet_gdc", "embedding_dim": DIM, "width": 0.25, "depth": 0.5}
CPU = torch.device("cpu")


def tree(folder: Path, method: str = "adadistill", **teacher: Any) -> dict[str, Any]:
    """A student of four steps and a teacher from a file."""
    return {
        "run": {"name": "trial", "folder": str(folder / "runs"), "log_every": 1, "tensorboard": False},
        "data": {
            "path": str(folder / "data"), "image_size": 32, "loader": "jpeg", "workers": 1,
            "prepare": {
                "kind": "procedural", "identities": IDENTITIES, "images_per_identity": IMAGES,
                "held_out_identities": 4, "pairs": 20,
            },
        },
        "teacher": {"source": "checkpoint", "path": str(folder / "teacher.safetensors"), **teacher},
        "student": {
            "model": MODEL, "epochs": 1, "global_batch": 24, "schedule": {"name": "poly", "warmup_steps": 1},
            "method": {"name": method, "scale": 16.0}, "optimizer": {"lr": 1e-3},
        },
        "evaluate": {"batch": 12},
    }  # fmt: skip


def save_teacher(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config, data = parse_config(tree(path.parent)).student.model, parse_config(tree(path.parent)).data
    model = build_model(config, 32)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            layer.momentum = 1.0
    plan = TrainingPlan(RECORDS, BatchCut(RECORDS), seed=0, flip=False)
    with torch.no_grad():  # running statistics of these images: their embeddings spread, as a trained teacher's do
        model(next(iter(open_loader(data, open_source(data), plan, CPU).epoch(0))).images)
    save_model(path, model.eval(), config, 32)


def make_caches(folder: Path) -> Path:
    """Data, a teacher, and caches of each number format."""
    prepare(parse_config(tree(folder)).data)
    save_teacher(folder / "teacher.safetensors", 0)
    for dtype in ("fp32", "fp16", "bf16"):
        run(embed_into, 1, tree(folder), folder / dtype, dtype)
    return folder


def embed_into(world: World, settings: dict[str, Any], output: Path, dtype: str, *more: Any) -> None:
    config, folder = output_of(parse_config(settings), str(output), dtype)
    with small_blocks():
        embed(config, world, folder, *more or (False, None))


@contextmanager
def small_blocks() -> Iterator[None]:
    """So that there are several."""
    make, before = CacheWriter.__init__, CacheWriter.__init__.__defaults__
    make.__defaults__ = (BLOCK,)
    try:
        yield
    finally:
        make.__defaults__ = before


def refusal(world: World, act: Callable[..., Any], *arguments: Any) -> str:
    """What `act` raises, on every rank."""
    with pytest.raises(PartialKDError) as refused:
        act(world, *arguments)
    return str(refused.value)


def teacher_of(folder: Path) -> Teacher:
    return open_teacher(parse_config(tree(folder)).teacher, 32, CPU)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def losses(world: World, settings: dict[str, Any], resume: str = "never") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a run's student."""
    config, stop = parse_config(settings), StopSignals()
    try:
        job = prepare_job(config, world, resume, stop)
        run_phase(job, "student", config.student, make_teacher(job))
    finally:
        stop.forget()
    world.barrier()
    lines = [json.loads(line) for line in (job.context.folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(MEASURED)} for line in lines]


def settings_of(made: Path, name: str, method: str = "adadistill", **teacher: Any) -> dict[str, Any]:
    settings = tree(made, method, **teacher)
    settings["run"]["name"] = name
    return settings
