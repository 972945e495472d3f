"""GhostFaceNetV1 of Keras: their layers by name, with random numbers, what they give, and the .h5 that Keras 2 writes.

Written from the published definition (partialkd/models/keras/ghostfacenet.py says where it is) with arrays as Keras
lays them out, maps (b, H, W, channels), in float64. Names and shapes are those of files that tf_keras 2.21 has written
of that definition.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KERNELS = (3, 3, 3, 5, 5, 3, 3, 3, 3, 3, 3, 5, 5, 5, 5, 5)
INNER = (16, 48, 72, 72, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960, 960)  # and 512
OUTPUTS = (16, 24, 24, 40, 40, 80, 80, 80, 80, 112, 112, 160, 160, 160, 160, 160)
GATED, HALVING = (3, 4, 9, 10, 11, 13, 15), (1, 3, 5, 11)
Layers = dict[str, dict[str, Tensor]]


class Drawn:
    """Layers made one after the other, each with its name and random numbers, and applied."""

    def __init__(self, epsilon: float) -> None:
        self.epsilon, self.layers = epsilon, Layers()
        self.numbers, self.generator = Counter[str](), torch.Generator().manual_seed(0)

    def name(self, kind: str, own: str) -> str:
        """Give a layer the name that Keras gives one of its kind, or, in the head, its own."""
        if own:
            return own
        number = self.numbers[kind]
        self.numbers[kind] += 1
        return f"{kind}_{number}" if number else kind

    def layer(self, name: str, **arrays: tuple[Sequence[int], float, float]) -> list[Tensor]:
        """Draw the arrays of a layer: shape, mean and spread of each."""
        made = {
            array: mean + spread * (torch.rand(tuple(shape), generator=self.generator) - 0.5)
            for array, (shape, mean, spread) in arrays.items()
        }
        self.layers[name] = made
        return [x.double() for x in made.values()]

    def conv(self, x: Tensor, outputs: int, kernel: int, stride: int, name: str = "", bias: bool = False) -> Tensor:
        channels = x.shape[3]
        spread = (12 / (kernel * kernel * channels)) ** 0.5
        more = {"bias": ((outputs,), 0.0, 0.5)} if bias else {}
        kernels, *shift = self.layer(
            self.name("conv2d", name), kernel=((kernel, kernel, channels, outputs), 0.0, spread), **more
        )
        found = torch.einsum("bhwcij,ijco->bhwo", self.windows(x, (kernel, kernel), stride), kernels)
        return found + shift[0] if shift else found

    def depthwise(self, x: Tensor, kernel: tuple[int, int], stride: int, name: str = "", valid: bool = False) -> Tensor:
        shape, spread = (*kernel, x.shape[3], 1), (12 / (kernel[0] * kernel[1])) ** 0.5
        (kernels,) = self.layer(self.name("depthwise_conv2d", name), depthwise_kernel=(shape, 0.0, spread))
        windows = self.windows(x, kernel, stride, valid)
        return torch.einsum("bhwcij,ijcm->bhwcm", windows, kernels).flatten(3)

    def windows(self, x: Tensor, kernel: tuple[int, int], stride: int, valid: bool = False) -> Tensor:
        """Pad as TensorFlow does, and cut the windows of a convolution out."""
        for axis in () if valid else (1, 2):
            side, width = x.shape[axis], kernel[axis - 1]
            total = max(0, (-(-side // stride) - 1) * stride + width - side)
            before, after = (total // 2, total - total // 2)
            shapes = [[count if at == axis else n for at, n in enumerate(x.shape)] for count in (before, after)]
            x = torch.cat([x.new_zeros(shapes[0]), x, x.new_zeros(shapes[1])], dim=axis)
        return x.unfold(1, kernel[0], stride).unfold(2, kernel[1], stride)

    def norm(self, x: Tensor, name: str = "") -> Tensor:
        shape = (x.shape[-1],)
        gamma, beta, mean, variance = self.layer(
            self.name("batch_normalization", name), gamma=(shape, 1.0, 1.0), beta=(shape, 0.0, 1.0),
            moving_mean=(shape, 0.0, 1.0), moving_variance=(shape, 0.8, 1.5),
        )  # fmt: skip
        return (x - mean) * (variance + self.epsilon).rsqrt() * gamma + beta

    def prelu(self, x: Tensor) -> Tensor:
        (alpha,) = self.layer(self.name("activation", ""), alpha=((1, 1, x.shape[3]), 0.2, 0.4))
        return x.clamp(min=0) + alpha * x.clamp(max=0)

    def gate(self, x: Tensor) -> Tensor:
        means, channels = x.mean((1, 2), keepdim=True), x.shape[3]
        between = self.conv(means, divisible(channels * 0.25), 1, 1, bias=True)
        gates = self.conv(self.prelu(between), channels, 1, 1, bias=True)
        self.numbers["activation"] += 1  # the hard sigmoid is one, too, and has no weights
        return x * (gates / 5 + 0.5).clamp(0, 1)

    def ghost(self, x: Tensor, outputs: int, activated: bool) -> Tensor:
        primary = self.norm(self.conv(x, outputs // 2, 1, 1))
        primary = self.prelu(primary) if activated else primary
        cheap = self.norm(self.depthwise(primary, (3, 3), 1))
        cheap = self.prelu(cheap) if activated else cheap
        return torch.cat([primary, cheap], dim=3)

    def block(self, x: Tensor, number: int, inner: int, outputs: int, kernel: int) -> Tensor:
        stride, channels = 2 if number in HALVING else 1, x.shape[3]
        y = self.ghost(x, inner, True)
        if stride > 1:
            y = self.norm(self.depthwise(y, (kernel, kernel), stride))
        y = self.gate(y) if number in GATED else y
        y = self.ghost(y, outputs, False)
        if stride > 1 or channels != outputs:
            x = self.depthwise(x, (kernel, kernel), stride)
            x = self.conv(self.norm(x), outputs, 1, 1)
            x = self.norm(x)
        return x + y

    def network(self, x: Tensor, width: float, stride: int, dim: int, bias: bool) -> Tensor:
        """Apply all layers to images (b, H, H, 3) as they are fed -> embeddings (b, dim)."""
        x = self.norm(self.conv(x.double(), divisible(16 * width), 3, stride))
        x = self.prelu(x)
        widths = [divisible(channels * width) for channels in (*INNER, 512)]
        for number, (inner, outputs, kernel) in enumerate(zip(widths, OUTPUTS, KERNELS, strict=True)):
            x = self.block(x, number, inner, divisible(outputs * width), kernel)
        x = self.prelu(self.norm(self.conv(x, widths[-1], 1, 1)))
        x = self.depthwise(x, (x.shape[1], x.shape[2]), 1, "GDC_dw", valid=True)
        x = self.conv(self.norm(x, "GDC_batchnorm"), dim, 1, 1, "GDC_conv", bias)
        return self.norm(x.flatten(1), "pre_embedding")


def divisible(channels: float) -> int:
    rounded = max(4, int(channels + 2) // 4 * 4)
    return rounded + 4 if rounded < 0.9 * channels else rounded


def write_h5(path: Path, layers: Layers, epsilon: float | None = None) -> Path:
    """Write layers as Keras 2 does: a whole model that states `epsilon`, or, without one, its weights alone."""
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights") if epsilon is not None else file
        named = [name.encode() for name in ("input_1", *layers)]
        group.attrs.update({"layer_names": named, "backend": b"tensorflow", "keras_version": b"2.10.0"})
        for layer in ("input_1", *layers):
            part, arrays = group.create_group(layer), layers.get(layer, {})
            part.attrs["weight_names"] = [f"{layer}/{array}:0".encode() for array in arrays]
            for array, x in arrays.items():
                part[f"{layer}/{array}:0"] = x.numpy()
        if epsilon is not None:
            file.attrs["model_config"] = json.dumps(configured(layers, epsilon)).encode()
    return path


def configured(layers: Layers, epsilon: float) -> dict[str, Any]:
    """Give the settings of a model as Keras states them, as far as they are looked at."""
    norms = [{"name": layer, "epsilon": epsilon} for layer, arrays in layers.items() if "gamma" in arrays]
    each = [{"class_name": "BatchNormalization", "config": settings} for settings in norms]
    return {"class_name": "Functional", "config": {"name": "GhostNet", "layers": each}}
