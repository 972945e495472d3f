"""Frozen teachers: a checkpoint of our networks, an ONNX file, or a network in memory.

Shapes: images (b, 3, S, S) in this project's convention (RGB, (pixel - 127.5) / 127.5) -> embeddings (b, D) float32,
not normalised. D is the teacher's dimension or, with project_to, that of one fixed projection with orthonormal columns
(rows, when it widens), applied to embeddings and classifier rows alike.
The images are brought to what the teacher expects (`InputConfig`: size by antialiased bilinear resize, then mean, std
and colour order). The teacher runs in eval mode, without gradient, in the precision of its weights or, with
`teacher.precision = "bf16"`, under autocast, whatever the caller's; `embed` raises if it was put into training mode or
its buffers changed.
On the CPU an image's embedding does not depend on the batch it comes in, bit for bit: kernels are chosen by the shape
of their input and round differently, so the network always sees `GROUP` images, the last group filled up by repetition.
(The number of threads may change the last bits.) On CUDA it sees the batch as it is; there the last bits may differ.
Compiled (`teacher.compile`, models/compiled.py) it always sees one number of images, on CUDA too: each shape would be
compiled anew. There it is the `batch` it is opened for, or an equal part of that (`part_of`). Embeddings then differ by
rounding, under 1e-5 of their norm in the tests, far less than what float16 rounds off in a cache: so the fingerprint is
that of the plain network, and embeddings kept by either serve the other.
Errors: TeacherError, naming the file, for a teacher that does not load, has another dimension than declared, or emits
NaN, infinity, zeros or the same embedding for every image.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partialkd.config import EnsembleInputs, InputConfig, TeacherConfig
from partialkd.config.teacher import Precision
from partialkd.errors import CheckpointError, TeacherError
from partialkd.models.build import build_empty, in_memory_format
from partialkd.models.compiled import compile_in_place
from partialkd.models.onnx_file import onnx_digest
from partialkd.models.saved import open_model
from partialkd.models.weights import put_weights, weights_of
from partialkd.teacher.onnx_network import OnnxNetwork

PROJECTION_SEED = 20240701
GROUP = 16  # images a forward pass on the CPU
LARGEST_PART = 64  # images a forward pass on CUDA, compiled
CONSTANT = 1e-6  # relative spread of the embeddings under which the teacher ignores its input


class Teacher:
    """A network (b, 3, accepts.size, accepts.size) -> (b, D), frozen.

    origin: its name in errors. digest: of its weights; `fingerprint` covers the input format and the projection too,
    so that embeddings kept under it stay valid. batch: images that it will mostly be given at once.
    """

    def __init__(
        self,
        network: nn.Module,
        accepts: InputConfig,
        image_size: int,
        device: torch.device,
        project_to: int | None,
        origin: str,
        digest: str,
        compiled: bool = False,
        batch: int = LARGEST_PART,
        precision: Precision = "fp32",
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.accepts, self.image_size, self.device, self.origin = accepts, image_size, torch.device(device), origin
        self.inputs: InputConfig | EnsembleInputs = accepts  # for manifests
        self._half, self._quiet = precision == "bf16", not compiled
        if self.device.type == "cuda" and getattr(network, "channels_last", None) is None:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._marks = self._buffer_marks()
        self._group = GROUP if self.device.type == "cpu" else None  # images a forward pass; None: the batch
        self.network_dim = self._emitted_dim()  # before the projection
        self.embedding_dim = project_to or self.network_dim
        self._projection = orthonormal(self.network_dim, project_to).to(device) if project_to else None
        self.fingerprint = _fingerprint(digest, accepts, image_size, project_to, precision)
        if compiled:
            compile_in_place(self.network, self.device, "teacher.compile", graphs=True)
            self._group = self._group or part_of(batch)

    def embed(self, images: Tensor) -> Tensor:
        """Embed images (b, 3, S, S) -> (b, embedding_dim) float32 on the teacher's device, without gradient."""
        rows = self._run(images)
        if rows.shape != (len(images), self.network_dim):
            expected = (len(images), self.network_dim)
            raise TeacherError(f"{self.origin}: must emit embeddings of the shape {expected}, got {tuple(rows.shape)}")
        return self.project(rows)

    def project(self, rows: Tensor) -> Tensor:
        """Project rows (n, teacher's dimension) -> (n, embedding_dim); the rows themselves without project_to."""
        if rows.dim() != 2 or rows.shape[1] != self.network_dim:
            rule = f"rows must be (n, {self.network_dim}), the teacher's dimension"
            raise TeacherError(f"{self.origin}: {rule}, got {tuple(rows.shape)}")
        if self._projection is None:
            return rows
        with torch.autocast(rows.device.type, enabled=False):
            return rows @ self._projection.to(rows)

    def check(self, images: Tensor) -> None:
        """Raise TeacherError if embeddings of these images (and of noise) are not finite, zero, or all the same."""
        rows = self.embed(torch.cat([images.to(self.device), self._noise()]))
        broken = int((~rows.isfinite().all(1)).sum())
        if broken:
            raise TeacherError(f"{self.origin}: {broken} of {len(rows)} embeddings hold NaN or infinity")
        if not rows.norm(dim=1).all():
            raise TeacherError(f"{self.origin}: emits an embedding of zeros")
        if (rows - rows[0]).abs().max() <= CONSTANT * rows.abs().max():
            raise TeacherError(f"{self.origin}: emits the same embedding for every image")

    def buffers_digest(self) -> str:
        """Hash the network's buffers (BatchNorm statistics): sha256, for tests and logs."""
        return state_digest(dict(self.network.named_buffers()))

    def show_maps(self) -> None:
        """Run so that others may compute gradients with what hooks see inside the network."""
        self._quiet = False

    def _run(self, images: Tensor) -> Tensor:
        if self.network.training:
            raise TeacherError(f"{self.origin}: the teacher was put into training mode")
        without_gradient = torch.inference_mode() if self._quiet else torch.no_grad()
        with without_gradient, torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            rows = self._forward(self._prepared(images.to(self.device))).float()
        if self._buffer_marks() != self._marks:
            raise TeacherError(f"{self.origin}: the teacher's buffers changed")
        return rows.clone() if rows.is_inference() else rows  # a loss keeps them for its gradient

    def _forward(self, images: Tensor) -> Tensor:
        """Run the network on them, in groups of one size on the CPU and where it is compiled."""
        if not len(images):
            return images.new_zeros((0, self.network_dim))
        if self._group is None:
            return self.network(images)
        filled = torch.cat([images, images[-1:].expand(-len(images) % self._group, -1, -1, -1)])
        rows = [self.network(group).clone() for group in filled.split(self._group)]  # a CUDA graph has one result
        for emitted in rows:
            if emitted.dim() != 2 or len(emitted) != self._group:
                rule = "must emit (b, D) embeddings"
                raise TeacherError(f"{self.origin}: {rule}, got {tuple(emitted.shape)} for {self._group} images")
        return torch.cat(rows)[: len(images)]

    def _prepared(self, images: Tensor) -> Tensor:
        """Bring images from this project's convention to the teacher's."""
        size, mean, std = self.accepts.size, self.accepts.mean, self.accepts.std
        if images.shape[-1] != size and len(images):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
        elif images.shape[-1] != size:
            images = images.new_zeros((0, 3, size, size))
        if (mean, std) != (127.5, 127.5):
            images = (images * 127.5 + (127.5 - mean)) / std
        return images.flip(1) if self.accepts.colour == "bgr" else images

    def _emitted_dim(self) -> int:
        rows = self._run(self._noise())
        if rows.dim() != 2 or len(rows) != 2:
            raise TeacherError(f"{self.origin}: must emit (b, D) embeddings, got {tuple(rows.shape)} for two images")
        return rows.shape[1]

    def _noise(self) -> Tensor:
        """Two fixed pictures of noise (2, 3, S, S)."""
        shape = (2, 3, self.image_size, self.image_size)
        return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(self.device)

    def _buffer_marks(self) -> list[tuple[int, int]]:
        """Identity and version of every buffer: writing to one, or replacing it, changes its mark. No device work."""
        return [(id(buffer), buffer._version) for buffer in self.network.buffers()]


def part_of(batch: int) -> int:
    """Return the images per call when a batch is split into the fewest equal parts of at most LARGEST_PART."""
    return -(-batch // -(-batch // LARGEST_PART))


def open_teacher(
    config: TeacherConfig, image_size: int, device: torch.device | str, batch: int = LARGEST_PART
) -> Teacher:
    """Open the teacher of source "checkpoint" or "onnx", checked on noise.

    image_size: that of the data. batch: as of Teacher.
    """
    device = torch.device(device)
    if config.source not in ("checkpoint", "onnx") or config.path is None:
        raise TeacherError(f'teacher.source must be "checkpoint" or "onnx" with a path, got {config.source!r}')
    try:
        network, accepts, digest = _from_onnx(config, device) if config.source == "onnx" else _from_checkpoint(config)
    except CheckpointError as error:
        raise TeacherError(str(error)) from error
    teacher = Teacher(
        network, accepts, image_size, device, config.project_to, config.path, digest, config.compile, batch,
        config.precision,
    )  # fmt: skip
    if config.embedding_dim not in (None, teacher.network_dim):
        rule = f"teacher.embedding_dim is {config.embedding_dim}"
        raise TeacherError(f"{config.path}: {rule}, but the network emits {teacher.network_dim} numbers")
    teacher.check(torch.empty(0, 3, image_size, image_size))
    return teacher


def described(config: TeacherConfig, image_size: int) -> tuple[str, InputConfig]:
    """Read fingerprint and input of a teacher of source "checkpoint" or "onnx" from its file alone; nothing runs."""
    try:
        if config.source == "onnx" and config.path is not None:
            accepts, digest = config.input, _onnx_digest(config)
        else:
            _, accepts, digest = _from_checkpoint(config)
    except (CheckpointError, OSError) as error:
        raise TeacherError(str(error)) from error
    return _fingerprint(digest, accepts, image_size, config.project_to, config.precision), accepts


def _fingerprint(
    digest: str, accepts: InputConfig, image_size: int, project_to: int | None, precision: Precision = "fp32"
) -> str:
    settings: list[Any] = [digest, accepts.model_dump(mode="json"), image_size, project_to]
    settings += [precision] if precision != "fp32" else []  # which was the only one
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def fingerprint_of(state: dict[str, Tensor], image_size: int) -> str:
    """Return the fingerprint that a network of ours with these weights has as a teacher."""
    return _fingerprint(state_digest(state), InputConfig(size=image_size), image_size, None)


def wrap_teacher(
    model: nn.Module,
    image_size: int,
    device: torch.device | str,
    project_to: int | None = None,
    compiled: bool = False,
    batch: int = LARGEST_PART,
    precision: Precision = "fp32",
) -> Teacher:
    """Make a frozen copy of a network in memory that takes this project's images; `model` stays as it is."""
    accepts = InputConfig(size=image_size)
    network, digest = copy.deepcopy(model), state_digest(model.state_dict())
    origin = "the trained teacher"
    device = torch.device(device)
    return Teacher(network, accepts, image_size, device, project_to, origin, digest, compiled, batch, precision)


def orthonormal(rows: int, columns: int) -> Tensor:
    """Make a matrix (rows, columns) float32 of orthonormal columns (rows, if fewer), the same on every machine.

    Drawn and orthogonalised in float64 by numpy's frozen RandomState stream; the sign of each vector is fixed, which
    LAPACK leaves open.
    """
    tall = (max(rows, columns), min(rows, columns))
    basis, triangle = np.linalg.qr(np.random.RandomState(PROJECTION_SEED).standard_normal(tall))
    basis = basis * np.sign(np.diag(triangle))
    return torch.from_numpy(np.ascontiguousarray(basis if rows >= columns else basis.T)).float()


def state_digest(state: dict[str, Tensor]) -> str:
    """Hash names, types, shapes and values: sha256."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


Opened = tuple[nn.Module, InputConfig, str]


def _from_onnx(config: TeacherConfig, device: torch.device) -> Opened:
    assert config.path is not None
    assert config.embedding_dim is not None
    network = OnnxNetwork(config.path, config.input, config.embedding_dim, device, config.output)
    return network, config.input, _onnx_digest(config)


def _onnx_digest(config: TeacherConfig) -> str:
    """Hash the file, and the name of the output if one is chosen."""
    digest = onnx_digest(Path(config.path or ""))
    return digest if config.output is None else hashlib.sha256(f"{digest} {config.output}".encode()).hexdigest()


def _from_checkpoint(config: TeacherConfig) -> Opened:
    assert config.path is not None
    if config.model is not None:
        network: Any = build_empty(config.model, config.input.size)
        put_weights(network, weights_of(network, config.path), config.path, assign=True)
        return in_memory_format(network), config.input, state_digest(network.state_dict())
    network, _, size = open_model(config.path)
    if config.input == InputConfig():  # not "was not given": a saved configuration gives every key
        return network, InputConfig(size=size), state_digest(network.state_dict())
    if config.input.size != size:
        raise TeacherError(
            f"{config.path}: made for images of {size} pixels, but teacher.input.size is {config.input.size}"
        )
    return network, config.input, state_digest(network.state_dict())
