"""Layers of a Keras file (.h5, .hdf5) as Keras 2 writes it: a whole model, or its weights alone.

    /model_weights          whole models; in files of weights alone, what follows stands at the root
        layer_names         attribute: all layers, also those without weights; keras_version beside it
        <layer>             weight_names: attribute, paths of this layer's arrays, as "conv2d/kernel:0"
    model_config            attribute of the root, JSON: each layer's settings, of which only `epsilon` is read

Nothing of a file is run: layers are never built, and arrays that lie in other files (external links, external and
virtual datasets) are refused. Needs h5py (the extra `keras`).
Errors: CheckpointError naming the file, and the layer and array.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partialkd.errors import CheckpointError
from partialkd.models.foreign_files import why_unreadable

ENDINGS = (".h5", ".hdf5")
MOST_NUMBERS = 2**28  # of one array, a gigabyte: a file may announce what it does not hold


@dataclass(frozen=True)
class KerasFile:
    """What a file holds: layers that have arrays, in its order, and the epsilons it states, both by a layer's name."""

    path: Path
    layers: dict[str, dict[str, Tensor]]  # "kernel", "gamma", ... as Keras lays them out, float32
    epsilons: dict[str, float]
    model: str | None  # the name of the model, if the file holds it whole


def read_layers(path: Path) -> KerasFile:
    """Read all arrays of a file."""
    try:
        import h5py
    except ImportError as error:
        raise CheckpointError(f"{path}: a Keras file needs h5py: pip install 'partialkd[keras]'") from error
    try:
        with h5py.File(path, "r") as file:
            return _content(file, path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file raises many kinds
        raise CheckpointError(f"{path}: cannot be read as weights: {why_unreadable(error, path)}") from error


def _content(file: Any, path: Path) -> KerasFile:
    root = file.get("model_weights", file)
    if "layer_names" not in root.attrs and "layer_names0" not in root.attrs:
        rule = 'must list its layers, as Keras 2 does in save("FILE.h5") and save_weights("FILE.h5")'
        raise CheckpointError(f"{path}: {rule}, holds {sorted(file)[:4]}")
    version = _text(root.attrs.get("keras_version", "2"))
    if not version.startswith("2."):
        rule = "must be of Keras 2, whose hard sigmoid has another slope than that of later ones"
        raise CheckpointError(f"{path}: {rule}, got Keras {version}")
    layers = {}
    for layer in _names(root, "layer_names"):
        group = _linked(root, layer, path)
        if names := _names(group, "weight_names"):
            layers[layer] = {_short(name): _array(_linked(group, name, path), f"{path}: {name}") for name in names}
    config = json.loads(_text(file.attrs.get("model_config", "{}"))).get("config", {})
    settings = [layer.get("config", {}) for layer in config.get("layers", ())]
    epsilons = {each["name"]: float(each["epsilon"]) for each in settings if "epsilon" in each}
    return KerasFile(path, layers, epsilons, config.get("name"))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _names(group: Any, key: str) -> list[str]:
    """Read a list of names; a long one is cut into several attributes, numbered from 0."""
    numbered = takewhile(group.attrs.__contains__, (f"{key}{number}" for number in count()))
    return [_text(name) for part in ([key] if key in group.attrs else numbered) for name in group.attrs[part]]


def _linked(group: Any, name: str, path: Path) -> Any:
    """Follow a path inside of the file; links into other files are not followed."""
    import h5py

    for step in name.split("/"):
        if isinstance(group.get(step, getlink=True), h5py.ExternalLink):
            raise CheckpointError(f"{path}: {name}: must lie in the file itself, got a link to another")
        group = group[step]
    return group


def _array(dataset: Any, where: str) -> Tensor:
    if dataset.external or dataset.is_virtual:
        raise CheckpointError(f"{where}: must lie in the file itself, got an array in another")
    if dataset.dtype.kind != "f":
        raise CheckpointError(f"{where}: must be floating-point numbers, got {dataset.dtype}")
    if dataset.size > MOST_NUMBERS:
        raise CheckpointError(f"{where}: must have at most {MOST_NUMBERS} numbers, announces {dataset.size}")
    values = np.asarray(dataset[()], dtype=np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{where}: must be finite, holds NaN or infinity")
    return torch.from_numpy(values)


def _short(name: str) -> str:
    return name.rpartition("/")[2].partition(":")[0]
