"""Which layer of a network does not do in a runtime what it does here.

The network is cut off after a layer, written for the target and run there; its output is compared with that of the
trained network's module. By halving the layers one is found whose input still agrees and whose output does not: as
many conversions as the layers have binary digits.
Error of a layer: |theirs - ours| / |ours| over all pictures.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from partialkd.export.base import LEAST_COSINE, ExportError, Graph, Target, planes
from partialkd.export.graphs import cut_after, layer_outputs

PICTURES = 16


@dataclass(frozen=True)
class Fault:
    """The layer, as the network calls it; how far its output and that of the layer before it are off."""

    layer: str
    error: float
    before: float
    of: int  # layers that were looked at

    def __str__(self) -> str:
        return f"layer {self.layer} (error {self.error:.2g}, before it {self.before:.2g})"


def faulty_layer(network: nn.Module, target: Target, graph: Graph, pictures: np.ndarray) -> Fault:
    """Find the layer at which a target leaves the network; pictures (n, S, S, 3) uint8."""
    pictures = pictures[:PICTURES]
    ours = activations(network, pictures)
    layers = list(layer_outputs(graph.content, set(ours)).items())
    error = lambda at: layer_error(target, cut(graph, *layers[at]), pictures, ours[layers[at][0]])
    last = len(layers) - 1
    good, bad, errors = -1, last, {-1: 0.0, last: error(last)}
    bar = min(float(np.sqrt(2 * (1 - LEAST_COSINE[target.precision]))), errors[last] / 2)
    while bad - good > 1:
        middle = (good + bad) // 2
        errors[middle] = error(middle)
        good, bad = (good, middle) if not errors[middle] <= bar else (middle, bad)
    return Fault(layers[bad][0], errors[bad], errors[good], len(layers))


def cut(graph: Graph, module: str, tensor: str) -> Graph:
    """Cut the network off after a module, whose output is this tensor of the graph."""
    return replace(graph, content=cut_after(graph.content, tensor), last=module)


def layer_error(target: Target, graph: Graph, pictures: np.ndarray, ours: np.ndarray) -> float:
    """Error of what a graph ends with; infinite where the target cannot convert or run the network so far."""
    with tempfile.TemporaryDirectory() as work:
        try:
            target.write(graph, Path(work))
            theirs = target.running(Path(work), graph)(pictures).reshape(len(pictures), -1).astype(np.float64)
        except ExportError:
            return float("inf")
    ours = ours.reshape(len(pictures), -1).astype(np.float64)
    if theirs.shape != ours.shape or not np.isfinite(theirs).all():
        return float("inf")
    return float(np.linalg.norm(theirs - ours)) / max(float(np.linalg.norm(ours)), 1e-30)


@torch.no_grad()
def activations(network: nn.Module, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Run the network -> the output of each of its modules that has none inside, by name."""
    kept: dict[str, np.ndarray] = {}

    def keeper(name: str) -> object:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                kept[name] = output.detach().numpy().copy()

        return keep

    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(keeper(name)) for name, module in leaves]
    try:
        network(torch.from_numpy(planes(pictures)))
    finally:
        for hook in hooks:
            hook.remove()
    return kept
