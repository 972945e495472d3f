"""MXNet teachers (`model-symbol.json` and `model-0000.params`) as networks and centres of ours, without MXNet.

The network comes out as a state_dict of models/iresnet.py with the same embeddings up to float32 rounding:
- a BatchNorm of ours adds 1e-5 to the variance, theirs its own eps (2e-5): the difference goes into running_var.
- `fix_gamma` means that gamma is one whatever the file holds.
- their input is (pixel - 127.5) / 128, ours (pixel - 127.5) / 127.5: 127.5 / 128 goes into the first convolution,
  whose zero padding is the same grey for both. So the file needs no input format of its own. Colour is RGB for both.
- both flatten maps (channel, row, column), channel slowest: pre_fc1's weight (D, C * H * W) is our fc's as it is.
The classifier `fc7_weight` (C, D), if it is there, becomes a matrix for `teacher.classifier` with label_map =
"identity": row k is class k of the data that the teacher was trained on.

Errors: CheckpointError naming the file and the node or parameter; nothing is written then.
Differs: `fc7_bias` must be zero, centres have none; the running variances serve evaluation: training goes on from
them with another eps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from partialkd.config import ModelConfig
from partialkd.errors import CheckpointError
from partialkd.models.build import build_empty
from partialkd.models.iresnet import STAGES
from partialkd.models.mxnet.graph import Graph, Layer, read_graph
from partialkd.models.mxnet.params import read_params
from partialkd.models.network import halved, scaled_blocks, scaled_channels
from partialkd.models.saved import save_model
from partialkd.models.weights import checksummed, put_weights
from partialkd.storage.atomic_files import refuse_existing, write_bytes
from partialkd.world.passes import Pass, counted

OUR_EPS, OUR_STD = 1e-5, 127.5
CLASSIFIER, BIAS = "arg:fc7_weight", "arg:fc7_bias"
MODEL_FILE, CLASSIFIER_FILE = "model.safetensors", "classifier.safetensors"
UNIT_KEYS = ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")  # of a residual block of ours, in their order


@dataclass(frozen=True)
class Imported:
    """A teacher of MXNet in our terms."""

    config: ModelConfig
    image_size: int
    state: dict[str, Tensor]  # of the network `config` describes
    classifier: Tensor | None  # (C, D) float32
    unused: list[str]  # names in the file that are part of neither


def import_checkpoint(symbol: Path, params: Path, folder: Path, image_size: int | None = None) -> Imported:
    """Write `folder`/model.safetensors and, if there is a classifier, classifier.safetensors."""
    folder = Path(folder)
    refuse_existing(folder / MODEL_FILE, folder / CLASSIFIER_FILE)
    found = read_checkpoint(symbol, params, image_size)
    model = build_empty(found.config, found.image_size)
    put_weights(model, found.state, str(params), assign=True)
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(x.nbytes for x in (*found.state.values(), found.classifier) if x is not None)
    with Pass(f"writing {size / 1e6:.0f} MB"):
        if found.classifier is not None:
            write_bytes(folder / CLASSIFIER_FILE, save(rows := {"centres": found.classifier}, checksummed(rows, {})))
        save_model(folder / MODEL_FILE, model, found.config, found.image_size)
    return found


def read_checkpoint(symbol: Path | str, params: Path | str, image_size: int | None = None) -> Imported:
    """Read both files -> the network's configuration, weights and classifier. image_size: None, the size that fits."""
    graph, arrays = read_graph(symbol), read_params(params)
    config = configuration(graph, str(symbol))
    parameters = _Parameters(arrays, str(params))
    state = dict(_state(graph, parameters))
    size = _image_size(state["fc.weight"], 8 * graph.stem[0].channels, image_size, str(params))
    put_weights(build_empty(config, size), state, str(params), assign=True)  # its shapes
    classifier = _classifier(parameters, config.embedding_dim)
    unused = sorted(arrays.keys() - parameters.used)
    return Imported(config, size, state, classifier, unused)


def configuration(graph: Graph, where: str) -> ModelConfig:
    """Find the configuration under which our IResNet has the graph's stages, channels and embedding."""
    units = tuple(len(stage) for stage in graph.stages)
    unit = graph.stem[0].channels
    channels = tuple(stage[0].layers[4].channels for stage in graph.stages)
    width = unit / 64
    if channels != tuple(unit << stage for stage in range(4)) or scaled_channels(64, width) != unit:
        rule = "channels must be c, then c, 2c, 4c, 8c in the stages, c a multiple of 8"
        raise CheckpointError(f"{where}: {rule}, got {unit}, then {channels}")
    name, depth = _name_and_depth(units, where)
    dim = graph.last[1].channels
    try:
        return ModelConfig(name=name, depth=depth, width=width, embedding_dim=dim, dropout=graph.dropout)  # type: ignore[arg-type]
    except ValidationError as error:
        raise CheckpointError(f"{where}: no network of ours: {error.errors()[0]['msg']}, got {dim}") from error


def layers(graph: Graph) -> Iterator[tuple[str, str, Layer]]:
    """(our module, "conv" | "norm" | "prelu" | "linear", their layer) of the whole network."""
    for key, layer in zip(("conv1", "bn1", "prelu"), graph.stem, strict=True):
        yield key, _kind(key), layer
    for number, stage in enumerate(graph.stages, 1):
        for place, unit in enumerate(stage):
            for key, layer in zip(UNIT_KEYS, unit.layers, strict=True):
                yield f"layer{number}.{place}.{key}", _kind(key), layer
            for kind, layer in zip(("conv", "norm"), unit.shortcut, strict=False):  # none in most units
                yield f"layer{number}.{place}.downsample.{int(kind == 'norm')}", kind, layer
    for key, kind, layer in zip(("bn2", "fc", "features"), ("norm", "linear", "norm"), graph.last, strict=True):
        yield key, kind, layer


def _kind(key: str) -> str:
    return "conv" if key.startswith("conv") else "norm" if key.startswith("bn") else "prelu"


def _name_and_depth(units: tuple[int, ...], where: str) -> tuple[str, float]:
    for name, counts in STAGES.items():
        if counts == units:
            return name, 1.0
    for name, counts in STAGES.items():
        for published, count in zip(counts, units, strict=True):
            depth = count / published
            if tuple(scaled_blocks(number, depth) for number in counts) == units:
                return name, depth
    raise CheckpointError(f"{where}: no IResNet of ours has stages of {units} units; there are {STAGES}")


class _Parameters:
    """The arrays of a file, taken by the name of a variable, finite and float32; remembers which were."""

    def __init__(self, arrays: dict[str, np.ndarray], where: str) -> None:
        self._arrays, self._where, self.used = arrays, where, set[str]()

    def take(self, prefix: str, name: str) -> np.ndarray:
        key = f"{prefix}:{name}"
        if key not in self._arrays:
            raise CheckpointError(f"{self._where}: {key} is missing")
        self.used.add(key)
        found = self._arrays[key]
        if found.dtype.kind != "f":
            raise CheckpointError(f"{self._where}: {key}: must be of a floating-point type, got {found.dtype}")
        values = found.astype(np.float32)
        if not np.isfinite(values).all():
            raise CheckpointError(f"{self._where}: {key}: holds NaN or infinity")
        return values

    def has(self, key: str) -> bool:
        return key in self._arrays

    def wrong(self, name: str, rule: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: {name}: {rule}")


def _state(graph: Graph, parameters: _Parameters) -> Iterator[tuple[str, Tensor]]:
    """Key and value of each entry but BatchNorm's counters, which start at zero."""
    every = list(layers(graph))
    for module, kind, layer in counted(every, "reading the network", len(every), "layers"):
        names = ("weight", "bias", "running_mean", "running_var")[: len(layer.variables)]
        found = _norm(layer, parameters) if kind == "norm" else [parameters.take("arg", v) for v in layer.variables]
        if module == "conv1":
            found = [(found[0].astype(np.float64) * (graph.scale * OUR_STD)).astype(np.float32)]
        for name, values in zip(names, found, strict=True):
            yield f"{module}.{name}", torch.from_numpy(values)
        if kind == "norm":
            yield f"{module}.num_batches_tracked", torch.zeros((), dtype=torch.int64)


def _norm(layer: Layer, parameters: _Parameters) -> list[np.ndarray]:
    """gamma, beta, mean, variance for our eps."""
    gamma, beta = (parameters.take("arg", name) for name in layer.variables[:2])
    mean, variance = (parameters.take("aux", name) for name in layer.variables[2:])
    if layer.fix_gamma:
        gamma = np.ones_like(gamma)
    if not (variance >= 0).all():
        raise parameters.wrong(layer.variables[3], f"variances must not be negative, got {variance.min()}")
    return [gamma, beta, mean, (variance.astype(np.float64) + (layer.eps - OUR_EPS)).astype(np.float32)]


def _image_size(weight: Tensor, channels: int, image_size: int | None, where: str) -> int:
    """Find the pixels per side from the fully connected layer's weight (D, channels * side^2)."""
    side = math.isqrt(weight.shape[-1] // channels)
    if weight.dim() != 2 or weight.shape[1] != channels * side * side:
        found = tuple(weight.shape)
        raise CheckpointError(f"{where}: the fully connected layer must read {channels} square maps, got {found}")
    size = 16 * side if image_size is None else image_size
    if halved(size, 4) != side:
        fit = f"{16 * side - 15}..{16 * side} pixels a side"
        raise CheckpointError(f"{where}: the fully connected layer was made for images of {fit}, got {size}")
    return size


def _classifier(parameters: _Parameters, dim: int) -> Tensor | None:
    if not parameters.has(CLASSIFIER):
        return None
    rows = parameters.take("arg", CLASSIFIER.removeprefix("arg:"))
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise parameters.wrong(CLASSIFIER, f"must have the shape (classes, {dim}), got {rows.shape}")
    if parameters.has(BIAS) and parameters.take("arg", BIAS.removeprefix("arg:")).any():
        raise parameters.wrong(BIAS, "must be zero: centres have no bias")
    return torch.from_numpy(rows)
