"""The network that a checkpoint holds, or a run folder: of a run that was stopped, or of its best checkpoint.

    <run>/                                 the finished network of the phase, else its newest checkpoint
    <run>/<phase>/checkpoints/step_*       that one
    <run>, with `which`                    "best" (by `run.keep_best`), "last", or the number of a step

Of a run with `ema_decay` it is the moving average of the network, as at the end of training.
Every file is compared with its checksum as it is read. Running statistics are averaged over the ranks that saved, as at
the end of training.
Errors: `CheckpointError` naming the path.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from partialkd.checkpoint.folder import NAME, best, complete, read_manifest
from partialkd.checkpoint.load import read_local
from partialkd.checkpoint.snapshot import PROGRESS, STUDENT
from partialkd.config import ModelConfig
from partialkd.config.load import load_config
from partialkd.errors import CheckpointError
from partialkd.models.build import build_empty
from partialkd.models.network import ADAPTERS, Network
from partialkd.models.saved import MODEL
from partialkd.models.weights import put_weights
from partialkd.storage.finite import not_finite
from partialkd.storage.tensor_file import read_bytes, read_tensors
from partialkd.world.world import World

CONFIG = "config.toml"  # of the run


def is_checkpoint(path: Path) -> bool:
    """Say whether a path is a folder that is called like a checkpoint."""
    return path.is_dir() and NAME.fullmatch(path.resolve().name) is not None


def chosen(path: Path, which: str | None = None, phase: str = "student") -> Path:
    """Find the network file or checkpoint that a path stands for; a file and a checkpoint stand for themselves."""
    if not path.is_dir() or is_checkpoint(path):
        if which is not None:
            raise CheckpointError(f"{path}: best, last or a step can be chosen in a run folder only")
        return path
    folder = path / phase
    if which is None and (folder / MODEL).is_file():
        return folder / MODEL
    there = complete(folder / "checkpoints")
    if not there:
        raise CheckpointError(f"{path}: neither a run folder with a network in {phase}/ nor a checkpoint")
    if which == "best":
        found = best(folder / "checkpoints")
        if found is None:
            raise CheckpointError(f"{folder}: no checkpoint has a score: run.keep_best was off")
        return found
    if which in (None, "last"):
        return there[-1]
    steps = {read_manifest(one).step: one for one in there}
    if which is None or not which.isdecimal() or int(which) not in steps:
        raise CheckpointError(f"{folder}: has checkpoints of steps {', '.join(map(str, steps))}, not of {which}")
    return steps[int(which)]


def checkpoint_network(path: Path) -> tuple[Network, ModelConfig, int]:
    """Open the network of a checkpoint, on the CPU in eval mode, with its configuration and image size."""
    manifest = read_manifest(path)
    files = manifest.files
    progress = json.loads(read_bytes(path / PROGRESS, files[PROGRESS]))
    config, image_size = _description(path, progress)
    student = read_tensors(path / STUDENT, files[STUDENT])
    local = read_local(path, files, manifest.world_size, World())
    state = _named(student, "param.") | _named(local, "buffer.") | _named(student | local, "average.")
    state = {name: x for name, x in state.items() if not name.startswith(f"{ADAPTERS}.")}
    if problem := not_finite(state):
        raise CheckpointError(f"{path}: {problem}")
    network = build_empty(config, image_size)
    put_weights(network, state, str(path), assign=True)
    return network.eval(), config, image_size


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _description(path: Path, progress: dict[str, Any]) -> tuple[ModelConfig, int]:
    """Read what a checkpoint says of its network; of an earlier version, the run's configuration has the image size."""
    config = ModelConfig.model_validate(progress["model"])
    if "image_size" in progress:
        return config, progress["image_size"]
    saved = path.resolve().parents[2] / CONFIG
    if not saved.is_file():
        raise CheckpointError(f"{path}: does not say for which images its network is, nor does {saved}, which is gone")
    return config, load_config(saved).data.image_size
