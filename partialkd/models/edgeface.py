"""EdgeFace XXS, XS, S and base: EdgeNeXt with a linear layer for its classifier, linear layers of XS and S of low rank.

Shapes: (b, 3, H, H), H at least 32 -> (b, embedding_dim). Published checkpoints load unchanged (their keys begin with
"model."):
    edgeface_xs    gamma 0.6: 1.77 M parameters, 154.00 M operations at 112 (a multiply-add is two)
    edgeface_s     gamma 0.5: 3.65 M, 306.12 M
    edgeface_xxs, edgeface_base    full rank: 1.24 M, 94.72 M; 18.23 M, 1398.83 M
Each stage is a few depthwise convolutions and, from the second on, one block that lets channels attend to channels
(cross-covariance attention) after convolutions over groups of channels of growing reach.
Source: arXiv:2307.01838 (EdgeFace), arXiv:2206.10589 (EdgeNeXt), arXiv:2106.09681 (XCA); layer facts and key names from
otroshi/edgeface at 95ee979 (backbones/timmfr.py, BSD-3-Clause) and timm's models/edgenext.py at 0173a13 (Apache-2.0).
Differs: `width` and `depth` scale channels and blocks; dropout acts before the last linear layer.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partialkd.config import ModelConfig
from partialkd.errors import ConfigError
from partialkd.models.network import Block, Network, scaled_blocks, scaled_channels

KERNELS = (3, 5, 7, 9)  # of the depthwise convolutions of each stage
SCALES = (2, 2, 3, 4)  # groups of channels in the last block of a stage, which the first stage does not have
POSITIONS = 32  # frequencies of the positions added in the second stage
EXPANSION = 4
SCALE = 1e-6  # of a residual branch, at the start
EPS = 1e-6
SMALLEST = 32  # pixels a side: four halvings of a quarter


@dataclass(frozen=True)
class Variant:
    """Facts of a published network."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: int
    rank: float | None = None  # gamma: of a linear layer, as a part of its smaller side


VARIANTS = {
    "edgeface_xxs": Variant((24, 48, 88, 168), (2, 2, 6, 2), 4),
    "edgeface_xs": Variant((32, 64, 100, 192), (3, 3, 9, 3), 4, 0.6),
    "edgeface_s": Variant((48, 96, 160, 304), (3, 3, 9, 3), 8, 0.5),
    "edgeface_base": Variant((80, 160, 288, 584), (3, 3, 9, 3), 8),
}


class LowRank(nn.Module):
    """A linear layer as the product of two."""

    def __init__(self, inputs: int, outputs: int, rank: float) -> None:
        super().__init__()
        between = max(2, int(min(inputs, outputs) * rank))
        self.linear1 = nn.Linear(inputs, between, bias=False)
        self.linear2 = nn.Linear(between, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.linear1(x))


class LayerNorm2d(nn.LayerNorm):
    """(b, c, H, W): over the channels of each place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mean(nn.Module):
    """(b, c, H, W) -> (b, c, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class MLP(nn.Module):
    """(..., dim) -> the same, through 4 * dim, GELU."""

    def __init__(self, dim: int, rank: float | None) -> None:
        super().__init__()
        self.fc1 = _linear(dim, EXPANSION * dim, rank)
        self.fc2 = _linear(EXPANSION * dim, dim, rank)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Convolving(Block):
    """(b, dim, H, W) -> the same: depthwise convolution, then an MLP at each place."""

    def __init__(self, dim: int, kernel: int, rank: float | None) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, rank)
        self.gamma = nn.Parameter(torch.full((dim,), SCALE))

    def compute(self, x: Tensor) -> Tensor:
        y = self.conv_dw(x).permute(0, 2, 3, 1)
        return x + (self.gamma * self.mlp(self.norm(y))).permute(0, 3, 1, 2)


class Positions(nn.Module):
    """(b, n, dim) of a map H x W: sines and cosines of row and column, projected to dim channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * POSITIONS, dim, 1)

    def forward(self, height: int, width: int) -> Tensor:
        weight = self.token_projection.weight
        rows, columns = (self._waves(size, weight) for size in (height, width))
        rows = rows[:, None].expand(height, width, POSITIONS)
        waves = torch.cat([rows, columns[None].expand(height, width, POSITIONS)], dim=2)
        return self.token_projection(waves.permute(2, 0, 1)[None]).flatten(2).transpose(1, 2)

    @staticmethod
    def _waves(size: int, like: Tensor) -> Tensor:
        """(size, POSITIONS): sine and cosine in turn, of 1 .. size as a share of a turn, at falling frequencies."""
        places = torch.arange(1, size + 1, device=like.device, dtype=like.dtype) / (size + EPS) * 2 * math.pi
        pairs = torch.arange(0, POSITIONS, 2, device=like.device, dtype=like.dtype) / POSITIONS
        angles = places[:, None] / 10_000**pairs
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class ChannelAttention(nn.Module):
    """(b, n, dim) -> the same: in each head every channel attends to the head's channels, over all places."""

    def __init__(self, dim: int, heads: int, rank: float | None) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = _linear(dim, 3 * dim, rank)
        self.proj = _linear(dim, dim, rank)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 4, 1)  # (b, h, dim/h, n)
        alike = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).transpose(-2, -1)
        mixed = (alike * self.temperature).softmax(dim=-1) @ values
        return self.proj(mixed.permute(0, 3, 1, 2).flatten(2))


class Attending(Block):
    """(b, dim, H, W) -> the same: convolutions over groups of channels, channel attention, MLP."""

    def __init__(self, dim: int, scales: int, heads: int, positions: bool, rank: float | None) -> None:
        super().__init__()
        width = -(-dim // scales)
        convolutions = (nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(max(1, scales - 1)))
        self.convs = nn.ModuleList(convolutions)
        self.pos_embd = Positions(dim) if positions else None
        self.norm_xca = nn.LayerNorm(dim, eps=EPS)
        self.gamma_xca = nn.Parameter(torch.full((dim,), SCALE))
        self.xca = ChannelAttention(dim, heads, rank)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, rank)
        self.gamma = nn.Parameter(torch.full((dim,), SCALE))

    def compute(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        tokens = self._convolved(x).flatten(2).transpose(1, 2)  # (b, n, dim)
        if self.pos_embd is not None:
            tokens = tokens + self.pos_embd(height, width)
        tokens = tokens + self.gamma_xca * self.xca(self.norm_xca(tokens))
        tokens = self.gamma * self.mlp(self.norm(tokens))
        return x + tokens.transpose(1, 2).unflatten(2, (height, width))

    def _convolved(self, x: Tensor) -> Tensor:
        """Each group's convolution also sees what the one before made; the last group stays as it is."""
        groups = x.chunk(len(self.convs) + 1, dim=1)
        done: list[Tensor] = []
        for convolution, group in zip(self.convs, groups, strict=False):
            done.append(convolution(group + done[-1] if done else group))
        return torch.cat([*done, groups[-1]], dim=1)


class EdgeFace(Network):
    """Four stages on maps of a quarter, an eighth, ... of the image's side."""

    head_modules = ("model.head",)

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        if image_size < SMALLEST:
            raise ConfigError(f"data.image_size must be at least {SMALLEST} for {config.name}, got {image_size}")
        variant = VARIANTS[config.name]
        dims = [dim if config.width == 1 else scaled_channels(dim, config.width) for dim in variant.dims]
        stages = [_stage(variant, index, dims, config.depth) for index in range(4)]
        last = _linear(dims[3], config.embedding_dim, variant.rank)
        norm, drop = LayerNorm2d(dims[3], eps=EPS), nn.Dropout(config.dropout)
        parts = OrderedDict(
            stem=nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), LayerNorm2d(dims[0], eps=EPS)),
            stages=nn.Sequential(*stages),
            head=nn.Sequential(OrderedDict(pool=Mean(), norm=norm, flatten=nn.Flatten(), drop=drop, fc=last)),
        )
        self.model = nn.ModuleDict(parts)  # under the name that it has there
        for module in self.modules():
            if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and variant.rank is None):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def stage_ends(self) -> tuple[str, str, str, str]:
        return "model.stages.0", "model.stages.1", "model.stages.2", "model.stages.3"

    def trunk(self, images: Tensor) -> Tensor:
        *before, _ = self.model["head"].children()
        return nn.Sequential(self.model["stem"], self.model["stages"], *before)(images)

    def embedding(self, maps: Tensor) -> Tensor:
        *_, last = self.model["head"].children()
        return last(maps)


def _linear(inputs: int, outputs: int, rank: float | None) -> nn.Module:
    return nn.Linear(inputs, outputs) if rank is None else LowRank(inputs, outputs, rank)


def _stage(variant: Variant, index: int, dims: list[int], depth: float) -> nn.Module:
    """Halve the map, but for the first stage, then blocks."""
    dim, blocks = dims[index], scaled_blocks(variant.depths[index], depth)
    attending = 0 if index == 0 else 1
    parts: list[nn.Module] = [Convolving(dim, KERNELS[index], variant.rank) for _ in range(blocks - attending)]
    if attending:
        parts.append(Attending(dim, SCALES[index], variant.heads, index == 1, variant.rank))
    stage = nn.Sequential(OrderedDict(downsample=nn.Identity(), blocks=nn.Sequential(*parts)))
    if index:
        norm = LayerNorm2d(dims[index - 1], eps=EPS)
        stage.downsample = nn.Sequential(norm, nn.Conv2d(dims[index - 1], dim, 2, 2))
    return stage
