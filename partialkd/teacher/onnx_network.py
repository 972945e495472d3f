"""An ONNX file as a frozen embedder, run by onnxruntime (models/onnx_session.py).

Shapes: (b, 3, S, S) float32 -> (b, D) float32 on the device of the images; b is free even if the file fixes its batch.
The file must have one input, under any name, of float32, float16 or uint8, with the channels second, (batch, 3, S, S),
or last, (batch, S, S, 3); and one output of D numbers per image, or exactly one such output among several, or one that
is named (`teacher.output`); and no operator that repeats a part of it. No gradient.
An input of uint8 is given pixels 0..255, rounded: the network normalises them itself, so that `teacher.input` must say
mean 0 and std 1.
Errors: TeacherError naming the file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from partialkd.config import InputConfig
from partialkd.errors import CheckpointError, TeacherError
from partialkd.models.onnx_file import check_that_it_ends
from partialkd.models.onnx_session import OnnxSession

INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
OUTPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
TORCH_TYPES: dict[Any, torch.dtype] = {
    np.float32: torch.float32, np.float16: torch.float16, np.uint8: torch.uint8, np.float64: torch.float64,
}  # fmt: skip


class OnnxNetwork(nn.Module):
    """A module without parameters and buffers that runs an ONNX file."""

    def __init__(
        self,
        path: str | Path,
        accepts: InputConfig,
        embedding_dim: int,
        device: torch.device,
        output: str | None = None,
    ) -> None:
        super().__init__()
        self.path, self.embedding_dim = Path(path), embedding_dim
        check_that_it_ends(self.path)
        self.session = OnnxSession(self.path, str(path), device)
        self.input = self._find_input(accepts)
        self.channels_last = self.input.shape[1] != 3 and self.input.shape[3] == 3
        self.output = self._find_output(output)
        found = next(item for item in self.session.outputs if item.name == self.output)
        self.emitted, self.output_shape = found.type, found.shape
        self.batch = self.input.shape[0] if isinstance(self.input.shape[0], int) else None

    def forward(self, images: Tensor) -> Tensor:
        if self.session.on_device and len(images):
            return self.on_device(images)
        pixels = self._pixels(images.detach().cpu())
        step = self.batch or max(len(pixels), 1)
        rows = [self._run(pixels[start : start + step]) for start in range(0, len(pixels), step)]
        if not rows:
            return images.new_zeros((0, self.embedding_dim))
        return torch.from_numpy(np.concatenate(rows).astype(np.float32, copy=False)).to(images.device)

    def on_device(self, images: Tensor) -> Tensor:
        """Run on images where they lie; as `forward`, which does so where the session runs on CUDA."""
        given, kind = self._laid_out(images.detach()), TORCH_TYPES[INPUT_TYPES[self.input.type]]
        step = self.batch or len(given)
        given = torch.cat([given, given[-1:].expand(-len(given) % step, -1, -1, -1)]).to(kind).contiguous()
        emits = TORCH_TYPES[OUTPUT_TYPES.get(self.emitted, np.float32)]
        rows = torch.empty(len(given), self.embedding_dim, dtype=emits, device=given.device)
        for part, result in zip(given.split(step), rows.split(step), strict=True):
            self._run_on_device(part, result)
        return rows[: len(images)].float()

    def _run_on_device(self, part: Tensor, result: Tensor) -> None:
        shape = [len(part), *(n if isinstance(n, int) else self.embedding_dim for n in self.output_shape[1:])]
        try:
            self.session.run_on_device(self.output, self.input.name, part, result.view(shape))
        except CheckpointError as error:
            raise TeacherError(str(error)) from error

    def _laid_out(self, images: Tensor) -> Tensor:
        images = images.round().clamp(0, 255) if INPUT_TYPES[self.input.type] == np.uint8 else images
        return images.permute(0, 2, 3, 1).contiguous() if self.channels_last else images

    def _pixels(self, images: Tensor) -> np.ndarray:
        """Bring images to the layout and number format of the file's input."""
        return self._laid_out(images).numpy().astype(INPUT_TYPES[self.input.type], copy=False)

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

    def _find_input(self, accepts: InputConfig) -> Any:
        inputs, size = self.session.inputs, accepts.size
        if len(inputs) != 1 or inputs[0].type not in INPUT_TYPES:
            found = ", ".join(f"{item.name} {item.type}" for item in inputs)
            raise TeacherError(f"{self.path}: must have one input of float32, float16 or uint8, got {found}")
        shape = inputs[0].shape
        if not any(_fits(shape, layout) for layout in ((3, size, size), (size, size, 3))):
            rule = f"must be (batch, 3, {size}, {size}) or (batch, {size}, {size}, 3) (teacher.input.size)"
            raise TeacherError(f"{self.path}: input {inputs[0].name!r} {rule}, got {shape}")
        if INPUT_TYPES[inputs[0].type] == np.uint8 and (accepts.mean, accepts.std) != (0.0, 1.0):
            rule = "teacher.input.mean must be 0 and teacher.input.std 1 for an input of uint8, which takes pixels"
            raise TeacherError(f"{self.path}: {rule}, got {accepts.mean:g} and {accepts.std:g}")
        return inputs[0]

    def _find_output(self, wanted: str | None) -> str:
        """Find the output that is named, else the only one, or the only one of embedding_dim numbers per image."""
        outputs = self.session.outputs
        fitting = [item for item in outputs if _numbers_an_image(item.shape) in (self.embedding_dim, None)]
        found = ", ".join(f"{item.name} {item.shape}" for item in outputs)
        numbers = f"{self.embedding_dim} numbers an image (teacher.embedding_dim)"
        if wanted is not None:
            if wanted not in [item.name for item in fitting]:
                raise TeacherError(
                    f"{self.path}: must have an output {wanted!r} (teacher.output) of {numbers}, got {found}"
                )
            return wanted
        if len(outputs) > 1:
            fitting = [item for item in fitting if _numbers_an_image(item.shape) is not None]
        if len(fitting) != 1:
            choose = "; name the one that is meant: teacher.output" if len(outputs) > 1 else ""
            raise TeacherError(f"{self.path}: must have one output of {numbers}, got {found}{choose}")
        return str(fitting[0].name)


def _fits(shape: list[Any], layout: tuple[int, int, int]) -> bool:
    """Return whether an input (batch, ...) takes this layout; what the file leaves open fits anything."""
    return len(shape) == 4 and all(not isinstance(n, int) or n == m for n, m in zip(shape[1:], layout, strict=True))


def _numbers_an_image(shape: list[Any]) -> int | None:
    """Return the size of an output without its batch; None if the file leaves it open."""
    sizes = shape[1:]
    return math.prod(sizes) if sizes and all(isinstance(n, int) for n in sizes) else None
