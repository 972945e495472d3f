"""Jobs that are started in this process, with a teacher from a file: up to where the run's folder is opened."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from partialkd.config import ModelConfig
from partialkd.config.load import parse_config
from partialkd.data.formats.verification_bin import write_bin
from partialkd.models import build_model
from partialkd.models.saved import save_model
from partialkd.run.begin import Job, prepare_job
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

CLASSES, SIZE, DIM = 12, 32, 16
MODEL = {"name": "mobilefacenet_gdc", "embedding_dim": DIM, "width": 0.125, "depth": 0.2}


def made(folder: Path, seed: int = 0) -> None:
    """Pictures of noise of 12 identities, pairs of them, a random teacher, and rows of a classifier."""
    rng = np.random.default_rng(seed)
    noise = [rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(2 * CLASSES)]
    for number, pixels in enumerate(noise):
        path = folder / "data" / f"person{number // 2:02d}" / f"{number % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    write_bin(folder / "pairs.bin", [_png(noise[k % len(noise)]) for k in range(80)], [k % 2 == 0 for k in range(40)])
    config = ModelConfig.model_validate(MODEL)
    torch.manual_seed(seed)
    save_model(folder / "t.safetensors", build_model(config, SIZE).eval(), config, SIZE)
    np.save(folder / "rows.npy", rng.standard_normal((CLASSES, DIM)).astype(np.float32))


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def named(folder: Path, name: str, **teacher: Any) -> dict[str, Any]:
    """Settings of a student that learns from this teacher, which is accepted as it is."""
    return {
        "run": {"name": name, "folder": str(folder / "runs"), "tensorboard": False},
        "data": {"source": "folder", "path": str(folder / "data"), "image_size": SIZE, "workers": 1},
        "teacher": {"source": "checkpoint", "path": str(folder / "t.safetensors"), "accept": True, **teacher},
        "student": {
            "model": MODEL, "method": {"name": "arcdistill", "scale": 16.0}, "epochs": 2, "global_batch": 12,
        },
        "evaluate": {"sets": [str(folder / "pairs.bin")], "folds": 4},
    }  # fmt: skip


def start(settings: dict[str, Any], resume: str = "never") -> Job:
    """All of a start but the work: everything is checked, the run's folder is open."""
    with StopSignals() as stop:
        return prepare_job(parse_config(settings), World(), resume, stop)


ARCFACE = {"name": "arcface", "scale": 16.0}


def alone(folder: Path, name: str, data: str = "data", **student: Any) -> dict[str, Any]:
    """Settings of a student without teacher over a folder of identities."""
    settings = named(folder, name)
    settings["data"]["path"] = str(folder / data)
    settings["teacher"] = {}
    settings["run"]["checkpoint_every"] = 1
    settings["student"] |= {"method": ARCFACE, **student}
    return settings


def started(place: Path, name: str, **student: Any) -> dict[str, Any]:
    centres = {"weights": str(place / "runs" / "done"), "label_map": "names", **student.pop("centres", {})}
    return alone(place, name, "more", **{"weights": str(place / "runs" / "done"), **student, "centres": centres})
