"""LiteRT (TensorFlow Lite): a .tflite with weights in float32, by Google's converter for PyTorch.

The file takes one picture. Operators that LiteRT does not have are refused by the converter.
Errors: ExportError, as base.py says.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from partialkd.export.base import Graph, Run, Target, one_by_one, planes


class UpTo(nn.Module):
    """A network that ends with one of its modules: images -> (b, ...)."""

    def __init__(self, network: nn.Module, module: str) -> None:
        super().__init__()
        self.network = network
        self.found: list[Tensor] = []
        network.get_submodule(module).register_forward_hook(lambda _module, _inputs, output: self.found.append(output))

    def forward(self, images: Tensor) -> Tensor:
        self.found.clear()
        self.network(images)
        return self.found[-1].flatten(1)


class LiteRT(Target):
    """ai_edge_litert.interpreter.Interpreter."""

    name = "litert"
    files = ("model.tflite",)
    modules = ("ai_edge_litert.interpreter", "litert_torch")
    packages = ("litert-torch", "ai-edge-litert")
    runtime = "ai-edge-litert"
    least = "ai-edge-litert 1.0.1"
    takes = "float32 (1, 3, S, S) RGB, (pixel - 127.5) / 127.5"
    any_batch = False

    def write(self, graph: Graph, folder: Path) -> None:
        import litert_torch

        with self.saying("convert"), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            network = graph.network if graph.last is None else UpTo(copy.deepcopy(graph.network), graph.last)
            images = torch.zeros(1, 3, graph.image_size, graph.image_size)
            litert_torch.convert(network, (images,)).export(str(folder / self.files[0]))

    def open(self, folder: Path, graph: Graph, threads: int = 1) -> Run:  # noqa: ARG002 (one signature for all)
        from ai_edge_litert.interpreter import Interpreter

        with self.saying("load"):
            interpreter = Interpreter(model_path=str(folder / self.files[0]), num_threads=threads)
            interpreter.allocate_tensors()
            given, wanted = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

        def run(pictures: np.ndarray) -> np.ndarray:
            with self.saying("run"):
                interpreter.set_tensor(given, planes(pictures))
                interpreter.invoke()
                return np.array(interpreter.get_tensor(wanted)).reshape(1, -1)

        return one_by_one(run)
