"""An ONNX file as a frozen embedder, run by onnxruntime (models/onnx_session.py).

Shapes: (b, 3, S, S) float32 -> (b, D) float32 on the device of the images; b is free even if the file fixes its batch.
The file must have one input (batch, 3, S, S) of float32 or float16, under any name, and one output of D numbers per
image, or exactly one such output among several; and no operator that repeats a part of it. No gradient.
Errors: TeacherError naming the file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from partialkd.errors import CheckpointError, TeacherError
from partialkd.models.onnx_file import check_that_it_ends
from partialkd.models.onnx_session import OnnxSession

INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxNetwork(nn.Module):
    """A module without parameters and buffers that runs an ONNX file."""

    def __init__(self, path: str | Path, size: int, embedding_dim: int, device: torch.device) -> None:
        super().__init__()
        self.path, self.embedding_dim = Path(path), embedding_dim
        check_that_it_ends(self.path)
        self.session = OnnxSession(self.path, str(path), device)
        self.input = self._find_input(size)
        self.output = self._find_output()
        self.batch = self.input.shape[0] if isinstance(self.input.shape[0], int) else None

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.detach().cpu().numpy().astype(INPUT_TYPES[self.input.type], copy=False)
        step = self.batch or max(len(pixels), 1)
        rows = [self._run(pixels[start : start + step]) for start in range(0, len(pixels), step)]
        if not rows:
            return images.new_zeros((0, self.embedding_dim))
        return torch.from_numpy(np.concatenate(rows).astype(np.float32, copy=False)).to(images.device)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        """Run at most one batch of the file; a short one is filled up by repeating its last image."""
        short = (self.batch or len(pixels)) - len(pixels)
        if short:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], short, axis=0)])
        try:
            (rows,) = self.session.run([self.output], {self.input.name: pixels})
        except CheckpointError as error:
            raise TeacherError(str(error)) from error
        return rows.reshape(len(pixels), -1)[: len(pixels) - short]

    def _find_input(self, size: int) -> Any:
        inputs = self.session.inputs
        if len(inputs) != 1 or inputs[0].type not in INPUT_TYPES:
            found = ", ".join(f"{item.name} {item.type}" for item in inputs)
            raise TeacherError(f"{self.path}: must have one input of float32 or float16, got {found}")
        shape, expected = inputs[0].shape, (3, size, size)
        if len(shape) != 4 or any(isinstance(n, int) and n != m for n, m in zip(shape[1:], expected, strict=True)):
            rule = f"input {inputs[0].name!r} must be (batch, 3, {size}, {size}) (teacher.input.size)"
            raise TeacherError(f"{self.path}: {rule}, got {shape}")
        return inputs[0]

    def _find_output(self) -> str:
        """Find the only output, or the only one of embedding_dim numbers per image."""
        outputs = self.session.outputs
        fitting = [item for item in outputs if _numbers_an_image(item.shape) in (self.embedding_dim, None)]
        if len(outputs) > 1:
            fitting = [item for item in fitting if _numbers_an_image(item.shape) is not None]
        if len(fitting) != 1:
            found = ", ".join(f"{item.name} {item.shape}" for item in outputs)
            rule = f"must have one output of {self.embedding_dim} numbers an image (teacher.embedding_dim)"
            raise TeacherError(f"{self.path}: {rule}, got {found}")
        return str(fitting[0].name)


def _numbers_an_image(shape: list[Any]) -> int | None:
    """Return the size of an output without its batch; None if the file leaves it open."""
    sizes = shape[1:]
    return math.prod(sizes) if sizes and all(isinstance(n, int) for n in sizes) else None
