"""MobileFaceNet: inverted bottlenecks, then a depthwise convolution over the whole map (GDC) and a linear layer.

Shapes: (b, 3, H, H) -> (b, embedding_dim). Three published networks, whose checkpoints load unchanged:
    mobilefacenet        arcface_torch `mbf`: twice the channels between blocks, 0.45 G multiply-adds at 112
    mobilefacenet_large  arcface_torch `mbf_large`: four times the channels, twice the blocks
    mobilefacenet_gdc    MobileFaceNet-GDC-512 of the AdaDistill authors: 1.199 M parameters, 221 M multiply-adds at
                         112; its last BatchNorm has no scale and shift
Source: arXiv:1804.07573 (MobileFaceNets); layer facts and key names from the two code bases, whose keys differ: one
numbers the parts of a block (`layers.0`), the other names them (`conv`).
Differs: `width` and `depth` scale channels and blocks; the GDC kernel fits the image size (7 x 7 at 112); dropout,
absent in the published networks, acts before the linear layer.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from partialkd.config import ModelConfig
from partialkd.models.network import Block, Network, halved, scaled_blocks, scaled_channels


@dataclass(frozen=True)
class Variant:
    """Facts of a published network, at width 1 in units of 64 channels."""

    scale: int  # channels between blocks, in units
    blocks: tuple[int, int, int, int]  # bottlenecks of the four stages; (1, ...): one grouped 3x3 convolution instead
    numbered: bool  # key names: `layers.<number>` or a name for each part
    affine: bool  # scale and shift in the last BatchNorm


VARIANTS = {
    "mobilefacenet": Variant(2, (1, 4, 6, 2), numbered=True, affine=True),
    "mobilefacenet_large": Variant(4, (2, 8, 12, 4), numbered=True, affine=True),
    "mobilefacenet_gdc": Variant(1, (1, 4, 6, 2), numbered=False, affine=False),
}
NAMES = ("conv1", "conv2_dw", "conv_23", "conv_3", "conv_34", "conv_4", "conv_45", "conv_5")


class Bottleneck(Block):
    """1x1 to `inner` channels, depthwise 3x3, 1x1 to `outputs`; at stride 1 plus the input."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, numbered: bool) -> None:
        super().__init__()
        self.residual = stride == 1
        parts = OrderedDict(
            conv=_convolution(inputs, inner, numbered=numbered),
            conv_dw=_convolution(inner, inner, 3, stride, 1, groups=inner, numbered=numbered),
            project=_convolution(inner, outputs, numbered=numbered, activation=False),
        )
        for name, part in _named(parts, numbered).named_children():
            self.add_module(name, part)

    def compute(self, x: Tensor) -> Tensor:
        y = x
        for part in self.children():
            y = part(y)
        return x + y if self.residual else y


class MobileFaceNet(Network):
    """Children in the order of the computation, under the published names; the last one is the head."""

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        variant = VARIANTS[config.name]
        unit = scaled_channels(64, config.width)
        stages = _stages(variant, unit, config.depth)
        gdc = _global_depthwise(8 * unit, halved(image_size, 4), config, variant)
        last = _convolution(2 * unit * variant.scale, 8 * unit, numbered=variant.numbered)
        self.numbered = variant.numbered
        if variant.numbered:
            self.layers = nn.Sequential(*stages)
            self.conv_sep = last
            self.features = gdc
        else:
            for name, stage in zip(NAMES, stages, strict=True):
                self.add_module(name, stage)
            self.conv_6_sep = last
            self.output_layer = gdc
        *self._trunk_names, head = (name for name, _ in self.named_children())
        self.head_modules = (head,)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stage_ends(self) -> tuple[str, str, str, str]:
        first, second, third, last = ("layers.1", "layers.3", "layers.5", "layers.7") if self.numbered else NAMES[1::2]
        return first, second, third, last

    def trunk(self, images: Tensor) -> Tensor:
        for name in self._trunk_names:
            images = self.get_submodule(name)(images)
        return images

    def embedding(self, maps: Tensor) -> Tensor:
        return self.get_submodule(self.head_modules[0])(maps)


def _stages(variant: Variant, unit: int, depth: float) -> list[nn.Module]:
    """The eight parts before the last 1x1 convolution."""
    narrow, wide, numbered = unit * variant.scale, 2 * unit * variant.scale, variant.numbered
    blocks = [scaled_blocks(count, depth) for count in variant.blocks]

    def residual(channels: int, inner: int, count: int) -> nn.Module:
        blocks = nn.Sequential(*(Bottleneck(channels, inner, channels, 1, numbered) for _ in range(count)))
        return nn.Sequential(OrderedDict([("layers" if numbered else "model", blocks)]))

    if variant.blocks[0] == 1:
        second: nn.Module = _convolution(narrow, narrow, 3, 1, 1, groups=unit, numbered=numbered)
    else:
        second = residual(narrow, 2 * unit, blocks[0])
    return [
        _convolution(3, narrow, 3, 2, 1, numbered=numbered),
        second,
        Bottleneck(narrow, 2 * unit, narrow, 2, numbered),
        residual(narrow, 2 * unit, blocks[1]),
        Bottleneck(narrow, 4 * unit, wide, 2, numbered),
        residual(wide, 4 * unit, blocks[2]),
        Bottleneck(wide, 8 * unit, wide, 2, numbered),
        residual(wide, 4 * unit, blocks[3]),
    ]


def _global_depthwise(channels: int, side: int, config: ModelConfig, variant: Variant) -> nn.Module:
    """(b, channels, side, side) -> (b, embedding_dim)."""
    numbered = variant.numbered
    parts = OrderedDict(
        conv_6_dw=_convolution(channels, channels, side, groups=channels, numbered=numbered, activation=False),
        conv_6_flatten=nn.Sequential(nn.Flatten(), nn.Dropout(config.dropout)),
        linear=nn.Linear(channels, config.embedding_dim, bias=False),
        bn=nn.BatchNorm1d(config.embedding_dim, affine=variant.affine),
    )
    return _named(parts, numbered)


def _convolution(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    padding: int = 0,
    *,
    groups: int = 1,
    numbered: bool,
    activation: bool = True,
) -> nn.Module:
    """Convolution, BatchNorm and, with `activation`, PReLU."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        bn=nn.BatchNorm2d(outputs),
    )
    if activation:
        parts["prelu"] = nn.PReLU(outputs)
    return _named(parts, numbered)


def _named(parts: OrderedDict[str, nn.Module], numbered: bool) -> nn.Sequential:
    """The parts in order, under their own names or as `layers.0`, `layers.1`, ..."""
    if numbered:
        return nn.Sequential(OrderedDict(layers=nn.Sequential(*parts.values())))
    return nn.Sequential(parts)
