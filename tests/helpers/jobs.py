"""A whole small job: its settings, its environment, and how torchrun is started for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from partialkd.config.load import parse_config
from partialkd.run import job as module
from partialkd.run.job import run_job
from partialkd.world.world import World

TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--local-addr=127.0.0.1",
    "--nproc-per-node=2",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def tree(folder: Path, **student: Any) -> dict[str, Any]:
    """A chain of a few steps: 12 identities of 8 drawings."""
    model = {"name": "mobilefacenet_gdc", "embedding_dim": 16, "width": 0.25, "depth": 0.5}
    short = {"model": model, "epochs": 1, "global_batch": 24, "schedule": {"name": "poly", "warmup_steps": 1}}
    return {
        "run": {"name": "trial", "folder": str(folder / "runs"), "log_every": 2, "report": False},
        "data": {
            "path": str(folder / "data"), "image_size": 32, "loader": "jpeg", "workers": 1,
            "prepare": {
                "kind": "procedural", "identities": 12, "images_per_identity": 8, "held_out_identities": 6, "pairs": 40,
            },
        },
        "teacher": {"source": "train", "train": {**short, "method": {"name": "arcface", "scale": 16.0}}},
        "student": {**short, "method": {"name": "adadistill", "scale": 16.0}, **student},
        "alone": {**short, "method": {"name": "cosface", "scale": 16.0}},
        "evaluate": {"sets": [str(folder / "data" / "faces.bin")], "fars": [0.1], "folds": 4},
    }  # fmt: skip


def job(
    world: World, settings: dict[str, Any], resume: str = "never", exported: bool = False, extend: bool = False
) -> dict[str, Any]:
    """The export takes several times as long as all the rest: only where it is asked for."""
    torch.manual_seed(world.rank)
    with pytest.MonkeyPatch.context() as patch:
        if not exported:
            patch.setattr(module, "export", lambda *_: None)
        return run_job(parse_config(settings), world, resume, extend)
