"""MixFaceNets XS, S and M: inverted residual blocks whose depthwise convolutions mix kernels of 3 to 11 pixels.

Shapes: (b, 3, H, H) -> (b, embedding_dim). Keys and shapes of the state_dict are those of the authors' code, so that
its files load. `shufflemixfacenet_*` are the same with the channels of each block's map in another order, which no key
tells of: a file does not say which of the two it is.
Source: Boutros et al., "MixFaceNets: Extremely Efficient Face Recognition Networks", IJCB 2021; MixConv:
arXiv:1907.09595; names and sizes read from fdbtrs/mixfacenets at f8bd37e, backbones/mixnetm.py (no licence stated: the
definition below is written anew). Parts that it takes from a file that is not in the stored copy of that repository
(convolution blocks, gates) are as in pytorchcv (MIT), from which it has them.
Differs: `width` and `depth` scale channels and blocks; the depthwise convolution before the embedding fits the image
size (7 x 7 maps at 112); dropout acts before the last convolution.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from partialkd.config import ModelConfig
from partialkd.models.network import Block, Network, halved, scaled_blocks, scaled_channels


@dataclass(frozen=True)
class Unit:
    """A block: channels after it, its factor of expansion, kernel sizes of its three convolutions, its gate's."""

    channels: int
    factor: int
    expansions: int  # pieces of the 1 x 1 convolution that expands
    kernels: int  # of the depthwise one: of 3, 5, 7 ... pixels
    reductions: int  # pieces of the 1 x 1 convolution that reduces
    gate: int  # what its channels are divided by in the gate; 0: none


# Blocks in groups of one size of map: 1/2, 1/4, 1/8, 1/8 and 1/16 of the image; the last two are one stage.
SMALL = (
    (Unit(24, 6, 2, 1, 2, 0), Unit(24, 3, 2, 1, 2, 0)),
    (Unit(40, 6, 1, 3, 1, 2), *[Unit(40, 6, 2, 2, 2, 2)] * 3),
    (Unit(80, 6, 1, 3, 2, 4), *[Unit(80, 6, 1, 2, 2, 4)] * 2),
    (Unit(120, 6, 2, 3, 2, 2), *[Unit(120, 3, 2, 4, 2, 2)] * 2),
    (Unit(200, 6, 1, 5, 1, 2), *[Unit(200, 6, 1, 4, 2, 2)] * 2),
)
MEDIUM = (
    (Unit(32, 6, 2, 3, 2, 0), Unit(32, 3, 2, 1, 2, 0)),
    (Unit(40, 6, 1, 4, 1, 2), *[Unit(40, 6, 2, 2, 2, 2)] * 3),
    (Unit(80, 6, 1, 3, 1, 4), *[Unit(80, 6, 2, 4, 2, 4)] * 3),
    (Unit(120, 6, 1, 1, 1, 2), *[Unit(120, 3, 2, 4, 2, 2)] * 3),
    (Unit(200, 6, 1, 4, 1, 2), *[Unit(200, 6, 1, 4, 2, 2)] * 3),
)


@dataclass(frozen=True)
class Variant:
    """Facts of a published network."""

    groups: tuple[tuple[Unit, ...], ...]
    first: int  # channels of the first convolution
    last: int  # channels before the depthwise convolution over the whole map
    width: float = 1.0


SIZES = {
    "xs": Variant(SMALL, 16, 512, width=0.5),
    "s": Variant(SMALL, 16, 1024),
    "m": Variant(MEDIUM, 24, 1024),
}
VARIANTS = {
    f"{kind}_{size}": variant for kind in ("mixfacenet", "shufflemixfacenet") for size, variant in SIZES.items()
}


class MixedConvolution(nn.Module):
    """(b, inputs, H, W) -> (b, outputs, H', W'): a convolution without bias for each part of the channels."""

    def __init__(self, inputs: int, outputs: int, kernels: list[int], stride: int, depthwise: bool) -> None:
        super().__init__()
        self.parts = _parts(inputs, len(kernels))
        for number, (kernel, own, made) in enumerate(
            zip(kernels, self.parts, _parts(outputs, len(kernels)), strict=True)
        ):
            groups = made if depthwise else 1
            self.add_module(str(number), nn.Conv2d(own, made, kernel, stride, kernel // 2, groups=groups, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.parts, dim=1)
        return torch.cat([one(part) for one, part in zip(self.children(), parts, strict=True)], dim=1)


class Gate(nn.Module):
    """(b, c, H, W) -> the same, each channel times a number in (0, 1) made of all channels' means."""

    def __init__(self, channels: int, between: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, between, 1)
        self.activ = nn.SiLU()
        self.conv2 = nn.Conv2d(between, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv2(self.activ(self.conv1(x.mean((2, 3), keepdim=True)))).sigmoid()


class MixUnit(Block):
    """Expand, convolve every channel by itself, gate, reduce; and a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, unit: Unit, stride: int, prelu: bool, shuffled: bool) -> None:
        super().__init__()
        inner, act = inputs * unit.factor, "prelu" if prelu else "swish"
        if unit.factor > 1:
            self.exp_conv = _block(inputs, inner, [1] * unit.expansions, 1, act)
        kernels = [3 + 2 * number for number in range(unit.kernels)]
        self.conv1 = _block(inner, inner, kernels, stride, act, depthwise=True)
        if unit.gate:
            self.se = Gate(inner, inputs // unit.gate)
        self.conv2 = _block(inner, outputs, [1] * unit.reductions, 1, None)
        self.residual, self.shuffled = inputs == outputs and stride == 1, shuffled

    def compute(self, x: Tensor) -> Tensor:
        maps = x
        for part in self.children():
            maps = part(maps)
        if self.residual:
            maps = maps + x
        return _shuffled(maps) if self.shuffled else maps


class MixFaceNet(Network):
    """A first block, four stages, a depthwise convolution over the whole map, and a linear layer."""

    head_modules = ("feautre_layer.pw_conv", "features_norm")  # spelt as published

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        variant, shuffled = VARIANTS[config.name], config.name.startswith("shuffle")
        wide = lambda published: scaled_channels(_rounded(published * variant.width), config.width)
        channels = wide(variant.first)
        first = MixUnit(channels, channels, Unit(channels, 1, 1, 1, 1, 0), 1, True, shuffled)
        start = _block(3, channels, [3], 2, "prelu")
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            init_block=nn.Sequential(OrderedDict(conv1=start, conv2=first))
        )
        stages: list[list[MixUnit]] = [[] for _ in range(4)]
        self.ends: list[str] = []  # the last block of each size of map
        for number, group in enumerate(variant.groups):
            stage, count = min(number, 3), scaled_blocks(len(group), config.depth)
            for at in range(count):
                unit = group[min(at, len(group) - 1)]
                stride = 2 if at == 0 and number not in (0, 3) else 1
                outputs = wide(unit.channels)
                stages[stage].append(MixUnit(channels, outputs, unit, stride, number == 0, shuffled))
                channels = outputs
            self.ends.append(f"features.stage{stage + 1}.unit{len(stages[stage])}")
        for number, units in enumerate(stages, start=1):
            parts[f"stage{number}"] = nn.Sequential(
                OrderedDict((f"unit{at}", unit) for at, unit in enumerate(units, start=1))
            )
        self.features = nn.Sequential(parts)
        last, side = scaled_channels(variant.last, config.width), halved(image_size, 4)
        self.tail = _block(channels, last, [1], 1, "prelu")
        self.feautre_layer = nn.ModuleDict({"dw_conv": nn.Sequential(), "pw_conv": nn.Sequential()})
        whole = nn.Conv2d(last, last, side, groups=last, bias=False)
        for part, name, layer in (
            ("dw_conv", "conv", whole),
            ("dw_conv", "bn", nn.BatchNorm2d(last)),
            ("pw_conv", "conv", nn.Conv2d(last, config.embedding_dim, 1, bias=False)),
        ):
            self.feautre_layer[part].add_module(name, layer)
        self.dropout = nn.Dropout(config.dropout)
        self.features_norm = nn.BatchNorm1d(config.embedding_dim)
        self.features_norm.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def stage_ends(self) -> tuple[str, str, str, str]:
        return self.ends[0], self.ends[1], self.ends[3], self.ends[4]

    def trunk(self, images: Tensor) -> Tensor:
        return self.dropout(self.feautre_layer["dw_conv"](self.tail(self.features(images))))

    def embedding(self, maps: Tensor) -> Tensor:
        return self.features_norm(self.feautre_layer["pw_conv"](maps).flatten(1))


def _block(
    inputs: int, outputs: int, kernels: list[int], stride: int, act: str | None, depthwise: bool = False
) -> nn.Sequential:
    """Convolution, of several kernels or of one, BatchNorm, and an activation if named."""
    conv: nn.Module = MixedConvolution(inputs, outputs, kernels, stride, depthwise)
    if len(kernels) == 1:
        groups, padding = outputs if depthwise else 1, kernels[0] // 2
        conv = nn.Conv2d(inputs, outputs, kernels[0], stride, padding, groups=groups, bias=False)
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs))
    if act is not None:
        parts["activ"] = nn.PReLU(outputs) if act == "prelu" else nn.SiLU()
    return nn.Sequential(parts)


def _parts(channels: int, count: int) -> list[int]:
    """Split channels into equal parts; the first takes the remainder."""
    each = channels // count
    return [channels - each * (count - 1), *[each] * (count - 1)]


def _shuffled(x: Tensor) -> Tensor:
    """Put the channels (b, c, H, W) of even number before those of odd number."""
    return x.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)


def _rounded(channels: float) -> int:
    """Round to a multiple of 8, not below nine tenths."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
