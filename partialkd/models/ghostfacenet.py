"""GhostFaceNets V1 and V2: half of each layer's channels made by a depthwise convolution of the other half.

Shapes: (b, 3, H, H) -> (b, embedding_dim). `ghostfacenet_v1_s1` is GhostFaceNetV1-1-1, its width one and the stride of
its first convolution one; `ghostfacenet_v2_s2` with width = 1.3 is GhostFaceNetV2-1.3-2. Published for V2-1.3-1:
6,795,720 parameters and 84,568 running statistics, exactly those of this module, and 272.1 M operations as the
profiler of TensorFlow counts them, elementwise work included (267.1 M multiply-adds of convolutions).
V2 multiplies the first half of all blocks but two by an attention of long rows and columns (DFC).
Source: IEEE Access 11 (2023) 35429, "GhostFaceNets"; arXiv:1911.11907 (GhostNet), arXiv:2211.12905 (GhostNetV2); sizes
read from HamadYA/GhostFaceNets at 001ebfa (backbones/ghost_model.py) and 7482570 (GhostFaceNets.py), MIT, and from
leondgarse/keras_cv_attention_models at 02771fa (ghostnet/ghostnet_v2.py), MIT.
As there, V1 pads like TensorFlow (at stride 2 more on the right and below), V2 like torch; the gates of squeeze and
excitation are clipped straight lines of slope 1/5 and 1/6.
Published weights are Keras files (.h5), which keras/ghostfacenet.py reads; the names of parameters are our own.
Differs: `depth` scales the blocks that repeat; dropout acts before the last convolution; V2's attention is enlarged as
torch does it, which at an odd side (7, of 112 pixels) takes other neighbours than TensorFlow does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partialkd.config import ModelConfig
from partialkd.models.network import Block, Network, scaled_blocks

# Of every block: kernel, channels between, channels after, squeeze and excitation, stride.
BLOCKS = (
    (3, 16, 16, False, 1), (3, 48, 24, False, 2), (3, 72, 24, False, 1), (5, 72, 40, True, 2), (5, 120, 40, True, 1),
    (3, 240, 80, False, 2), (3, 200, 80, False, 1), (3, 184, 80, False, 1), (3, 184, 80, False, 1),
    (3, 480, 112, True, 1), (3, 672, 112, True, 1), (5, 672, 160, True, 2), (5, 960, 160, False, 1),
    (5, 960, 160, True, 1), (5, 960, 160, False, 1), (5, 960, 160, True, 1),
)  # fmt: skip
V1_LAST = 512  # channels between, of the last block of V1, and before the head; V2: 960
PLAIN = 2  # blocks of V2 without attention
SQUEEZE = 0.25


@dataclass(frozen=True)
class Variant:
    """Facts of a published network."""

    version: int
    stride: int  # of the first convolution


VARIANTS = {f"ghostfacenet_v{version}_s{stride}": Variant(version, stride) for version in (1, 2) for stride in (1, 2)}


class Padded(nn.Conv2d):
    """A convolution without bias whose map has ceil(H / stride) places a side; `tf`: padded as TensorFlow does."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, tf: bool = False
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, 0 if tf else kernel // 2, groups=groups, bias=False)
        self.tf = tf

    def forward(self, x: Tensor) -> Tensor:
        if self.tf:
            kernel, stride = self.kernel_size[0], self.stride[0]
            missing = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in (x.shape[3], x.shape[2])]
            x = F.pad(x, [part for total in missing for part in (total // 2, total - total // 2)])
        return super().forward(x)


class SqueezeExcite(nn.Module):
    """(b, c, H, W) -> the same, each channel times a number in [0, 1] made of all channels' means."""

    def __init__(self, channels: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        between = divisible(channels * SQUEEZE)
        self.reduce = nn.Conv2d(channels, between, 1)
        self.act = nn.PReLU(between)
        self.expand = nn.Conv2d(between, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * (gate * self.slope + 0.5).clamp(0, 1)


class Attention(nn.Sequential):
    """DFC: (b, inputs, H, W) -> numbers in (0, 1), (b, outputs, H // 2, W // 2), each of a long row and column."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.AvgPool2d(2),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.Conv2d(outputs, outputs, (1, 5), padding=(0, 2), groups=outputs, bias=False),
            nn.BatchNorm2d(outputs),
            nn.Conv2d(outputs, outputs, (5, 1), padding=(2, 0), groups=outputs, bias=False),
            nn.BatchNorm2d(outputs),
            nn.Sigmoid(),
        )


class Ghost(nn.Module):
    """(b, inputs, H, W) -> (b, outputs, H, W): half by a 1 x 1 convolution, half by a depthwise one of those."""

    def __init__(self, inputs: int, outputs: int, activated: bool, tf: bool, attention: bool = False) -> None:
        super().__init__()
        half = outputs // 2
        self.primary = _normed(Padded(inputs, half, 1), activated)
        self.cheap = _normed(Padded(half, half, 3, groups=half, tf=tf), activated)
        self.attention = Attention(inputs, outputs) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary(x)
        both = torch.cat([primary, self.cheap(primary)], dim=1)
        if self.attention is None or min(x.shape[2:]) < 2:  # nothing to halve, in maps of one place
            return both
        return both * F.interpolate(self.attention(x), size=both.shape[2:], mode="nearest")


class GhostBottleneck(Block):
    """Ghost module to `inner` channels, at stride 2 a depthwise convolution, a gate, a ghost module; and a shortcut."""

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        kernel: int,
        stride: int,
        gated: bool,
        tf: bool,
        attention: bool,
    ) -> None:
        super().__init__()
        self.ghost1 = Ghost(inputs, inner, True, tf, attention)
        depthwise = Padded(inner, inner, kernel, stride, groups=inner, tf=tf)
        self.down = _normed(depthwise, activated=False) if stride > 1 else nn.Identity()
        self.gate = SqueezeExcite(inner, 1 / 5 if tf else 1 / 6) if gated else nn.Identity()
        self.ghost2 = Ghost(inner, outputs, False, tf)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            first = _normed(Padded(inputs, inputs, kernel, stride, groups=inputs, tf=tf), activated=False)
            self.shortcut = nn.Sequential(first, _normed(Padded(inputs, outputs, 1), activated=False))

    def compute(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.ghost2(self.gate(self.down(self.ghost1(x))))


class GhostFaceNet(Network):
    """Sixteen blocks, a depthwise convolution over the whole map (GDC), a linear layer."""

    head_modules = ("features",)

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        version, stride = VARIANTS[config.name].version, VARIANTS[config.name].stride
        channels = divisible(16 * config.width)
        self.stem = _normed(Padded(3, channels, 3, stride, tf=version == 1))
        blocks, side = [], -(-image_size // stride)
        for number, (kernel, inner, outputs, gated, step) in enumerate(_rows(version, config.depth)):
            widths = divisible(inner * config.width), divisible(outputs * config.width)
            attention = version == 2 and number >= PLAIN
            blocks.append(GhostBottleneck(channels, *widths, kernel, step, gated, version == 1, attention))
            channels, side = widths[1], -(-side // step)
        self.blocks = nn.Sequential(*blocks)
        halving = [number for number, row in enumerate(_rows(version, config.depth)) if row[4] > 1]
        self.last_blocks = [number - 1 for number in [*halving[1:], len(blocks)]]  # before a map is halved again
        last = divisible((V1_LAST if version == 1 else BLOCKS[-1][1]) * config.width)
        self.last = _normed(Padded(channels, last, 1))
        self.gdc = nn.Sequential(nn.Conv2d(last, last, side, groups=last, bias=False), nn.BatchNorm2d(last))
        self.drop = nn.Sequential(nn.Flatten(), nn.Dropout(config.dropout))
        linear = nn.Linear(last, config.embedding_dim, bias=False)
        self.features = nn.Sequential(linear, nn.BatchNorm1d(config.embedding_dim))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.xavier_normal_(linear.weight)

    @property
    def stage_ends(self) -> tuple[str, str, str, str]:
        first, second, third, last = (f"blocks.{number}" for number in self.last_blocks)
        return first, second, third, last

    def trunk(self, images: Tensor) -> Tensor:
        return self.drop(self.gdc(self.last(self.blocks(self.stem(images)))))

    def embedding(self, maps: Tensor) -> Tensor:
        return self.features(maps)


def divisible(channels: float) -> int:
    """Round a number of channels to a multiple of 4, not below nine tenths of it."""
    rounded = max(4, int(channels + 2) // 4 * 4)
    return rounded + 4 if rounded < 0.9 * channels else rounded


def _rows(version: int, depth: float) -> list[tuple[int, int, int, bool, int]]:
    """List the blocks; of those alike in outputs, after the first, as many as `depth` says."""
    rows = list(BLOCKS)
    if version == 1:
        rows[-1] = (5, V1_LAST, 160, True, 1)
    found = []
    for _, alike in groupby(rows, key=lambda row: row[2]):
        group = list(alike)
        found += group[: scaled_blocks(len(group), min(depth, 1.0))]
        found += [group[-1]] * (scaled_blocks(len(group), depth) - len(group))
    return found


def _normed(convolution: nn.Module, activated: bool = True) -> nn.Sequential:
    """Convolution, BatchNorm and, if activated, PReLU."""
    channels = convolution.out_channels
    assert isinstance(channels, int)
    parts = [convolution, nn.BatchNorm2d(channels), *([nn.PReLU(channels)] if activated else [])]
    return nn.Sequential(*parts)
