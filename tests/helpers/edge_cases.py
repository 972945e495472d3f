"""A small network, pictures to calibrate with, and a set on which it is nearly always right, for tests of export.

The set's identities are one drawing each, lit in five ways: a network that was hardly trained keeps them apart, so that
its TAR does not hang on last digits.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from PIL import Image

from partialkd.config import ModelConfig
from partialkd.data.packing.face_drawing import draw_jpegs
from partialkd.export.base import Graph, planes
from partialkd.export.onnx import to_onnx
from partialkd.export.onnx_targets import Onnx
from partialkd.models import build_model
from partialkd.models.network import Network

CONFIG = ModelConfig(name="mobilefacenet_gdc", width=0.125, depth=0.2, embedding_dim=32)
LIGHTS = (0.8, 0.9, 1.0, 1.1, 1.2)


def drawings(count: int, size: int, first: int = 0) -> np.ndarray:
    """(count, size, size, 3) uint8, of as many people."""
    encoded = draw_jpegs(0, size, [(first + k, 0) for k in range(count)])
    return np.stack([np.asarray(Image.open(io.BytesIO(one))) for one in encoded])


def network(config: ModelConfig = CONFIG, size: int = 32) -> Network:
    """Random weights, statistics of real pictures."""
    torch.manual_seed(0)
    made = build_model(config, size)
    images = torch.from_numpy(planes(drawings(32, size)))
    with torch.no_grad():
        for _ in range(30):
            made(images)
    return made.eval()


def graph_of(made: Network, size: int = 32, calibration: np.ndarray | None = None) -> Graph:
    return Graph(to_onnx(made, {}), made, size, None, calibration)


def write_set(folder: Path, people: int = 12, size: int = 32) -> Path:
    """A folder of identities: 12 people are 120 genuine pairs and 1650 of strangers."""
    for who, picture in enumerate(drawings(people, size, first=1000)):
        (folder / f"p{who:02d}").mkdir(parents=True)
        for at, light in enumerate(LIGHTS):
            lit = np.clip(picture.astype(np.float32) * light, 0, 255).astype(np.uint8)
            Image.fromarray(lit).save(folder / f"p{who:02d}" / f"{at}.png")
    return folder


def write_pictures(folder: Path, count: int = 64, size: int = 32) -> Path:
    """A folder of pictures to calibrate with."""
    folder.mkdir(parents=True)
    for at, picture in enumerate(drawings(count, size, first=2000)):
        Image.fromarray(picture).save(folder / f"{at}.png")
    return folder


def zeroed(content: bytes, weight: str) -> bytes:
    """The graph with one of its weights gone, if it has it."""
    model: Any = onnx.load_from_string(content)
    for one in model.graph.initializer:
        if one.name == weight:
            one.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(one)), weight))
    return bytes(model.SerializeToString())


def weights_of(graph: Graph) -> dict[str, str]:
    """Weight of each convolution and matrix product -> the module that its node is of."""
    found = {}
    for node in onnx.load_from_string(graph.content).graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            scopes = next(one.value for one in node.metadata_props if "name_scopes" in one.key)
            found[node.input[1]] = scopes
    return found


class Collapsed(Onnx):
    """A converter that loses a weight."""

    def __init__(self, weight: str) -> None:
        self.weight = weight

    def converted(self, graph: Graph) -> bytes:
        return zeroed(graph.content, self.weight)
