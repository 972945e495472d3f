"""An ONNX file as a frozen embedder, run by onnxruntime.

Shapes: (b, 3, S, S) float32 -> (b, D) float32 on the device of the images; b is free even if the file fixes its batch.
The file must have one input (batch, 3, S, S) of float32 or float16, under any name, and one output of D numbers an
image, or exactly one such output among several. Runs on CUDA if the images' device is and onnxruntime can, else on
the CPU with as many threads as torch uses. No gradient.
Weights outside the file ("external data") are read by onnxruntime, which refuses paths that leave the file's folder.
Errors: TeacherError naming the file.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from partialkd.errors import TeacherError

INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxNetwork(nn.Module):
    """Module-like: callable, no parameters, no buffers."""

    def __init__(self, path: str | Path, size: int, embedding_dim: int, device: torch.device) -> None:
        super().__init__()
        self.path, self.embedding_dim = Path(path), embedding_dim
        self.session = _session(self.path, device)
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
        """At most one batch of the file; a short one is filled up by repeating its last image."""
        short = (self.batch or len(pixels)) - len(pixels)
        if short:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], short, axis=0)])
        (rows,) = self.session.run([self.output], {self.input.name: pixels})
        return rows.reshape(len(pixels), -1)[: len(pixels) - short]

    def _find_input(self, size: int) -> Any:
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in INPUT_TYPES:
            found = ", ".join(f"{item.name} {item.type}" for item in inputs)
            raise TeacherError(f"{self.path}: must have one input of float32 or float16, got {found}")
        shape, expected = inputs[0].shape, (3, size, size)
        if len(shape) != 4 or any(isinstance(n, int) and n != m for n, m in zip(shape[1:], expected, strict=True)):
            rule = f"input {inputs[0].name!r} must be (batch, 3, {size}, {size}) (teacher.input.size)"
            raise TeacherError(f"{self.path}: {rule}, got {shape}")
        return inputs[0]

    def _find_output(self) -> str:
        """The only output, or the only one of embedding_dim numbers an image."""
        outputs = self.session.get_outputs()
        fitting = [item for item in outputs if _numbers_an_image(item.shape) in (self.embedding_dim, None)]
        if len(outputs) > 1:
            fitting = [item for item in fitting if _numbers_an_image(item.shape) is not None]
        if len(fitting) != 1:
            found = ", ".join(f"{item.name} {item.shape}" for item in outputs)
            rule = f"must have one output of {self.embedding_dim} numbers an image (teacher.embedding_dim)"
            raise TeacherError(f"{self.path}: {rule}, got {found}")
        return str(fitting[0].name)


def onnx_digest(path: Path) -> str:
    """sha256 of the file (graph and attributes too) and of external data it names, which must lie in its folder."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        digest = hashlib.sha256(path.read_bytes())
        for place in sorted(set(_external_data(onnx.load(path, load_external_data=False)))):
            file = (path.parent / place).resolve()
            if not (file.is_relative_to(path.parent.resolve()) and file.is_file()):
                raise TeacherError(f"{path}: external data must be a file in its folder, got {place!r:.80}")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    except (OSError, ValueError, DecodeError) as error:
        raise TeacherError(f"{path}: cannot be read as ONNX: {error}") from error
    return digest.hexdigest()


def _external_data(message: Any) -> Iterator[str]:
    """Files that any tensor in it names: of initialisers, attributes of nodes, inner graphs, functions."""
    for field, value in message.ListFields():
        if field.name == "external_data":
            yield from (item.value for item in value if item.key == "location")
        elif field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from _external_data(inner)


def _session(path: Path, device: torch.device) -> Any:
    if not path.is_file():
        raise TeacherError(f"{path}: no such file")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would take the ranks' cores
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    elif device.type == "cuda":
        hint = "install onnxruntime-gpu in place of onnxruntime"
        warnings.warn(f"{path}: this onnxruntime runs on the CPU only, slowly; {hint}", stacklevel=2)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common base
        raise TeacherError(f"{path}: onnxruntime cannot load it: {error}") from error


def _numbers_an_image(shape: list[Any]) -> int | None:
    """Size of an output without its batch; None if the file leaves it open."""
    sizes = shape[1:]
    return math.prod(sizes) if sizes and all(isinstance(n, int) for n in sizes) else None
