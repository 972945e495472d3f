"""FaceLiVTv2 XS, S, M and L: depthwise convolutions, and linear layers over all places in the two last stages.

Shapes: (b, 3, H, H) -> (b, embedding_dim). Keys and shapes of the state_dict are those of the authors' training form,
in which every depthwise convolution has a smaller one beside it (structural reparameterisation): what they publish as
parameters is counted after the two and their BatchNorm have become one convolution (`fused_parameters`).
Source: FaceLiVTv2, names and sizes read from novendrastywn/FaceLiVT at 2838bf9, backbones/facelivtv2.py (no licence is
stated there: the definition below is written anew from the architecture); RepMix: arXiv:2303.14189 (FastViT); linear
attention: arXiv:2506.10361. The channels of `facelivtv2_s` are those of that file (320 in the last stage), not of the
table in its README (384).
Differs: `width` and `depth` scale channels and blocks; the last depthwise convolution fits the image size (4 x 4 maps
at 112); dropout acts before the last linear layer; no dropped paths (their rate is 0 there too).
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partialkd.config import ModelConfig
from partialkd.models.network import Block, Network, halved, scaled_blocks, scaled_channels

CHANNELS = {
    "facelivtv2_xs": (32, 64, 128, 256),
    "facelivtv2_s": (48, 96, 192, 320),
    "facelivtv2_m": (56, 112, 224, 448),
    "facelivtv2_l": (64, 128, 256, 512),
}
DEPTHS = (3, 3, 9, 3)
GLOBAL_FROM = 2  # first stage whose blocks look at all places
LAST = 1284  # channels before the last linear layer
HEADS = 4
SCALE = 1e-5  # of the branch over all places, at the start


class Convolution(nn.Sequential):
    """Convolution without bias, BatchNorm."""

    c: nn.Conv2d

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, groups: int = 1, weight: float = 1.0) -> None:
        norm = nn.BatchNorm2d(outputs)
        nn.init.constant_(norm.weight, weight)
        convolution = nn.Conv2d(inputs, outputs, kernel, groups=groups, bias=False)
        super().__init__(OrderedDict(c=convolution, bn=norm))


class TwoKernels(nn.Module):
    """The sum of a 3 x 3 and a 1 x 1 convolution, normalised."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups)
        self.repconv = nn.Conv2d(inputs, outputs, 1, stride, groups=groups)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x) + self.repconv(x))


class Residual(nn.Module):
    """A module plus its input."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)


class FeedForward(nn.Module):
    """(b, dim, H, W) -> the same, through 2 * dim, GELU; zero at the start."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pw1 = Convolution(dim, 2 * dim)
        self.pw2 = Convolution(2 * dim, dim, weight=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(F.gelu(self.pw1(x)))


class Affine(nn.Module):
    """A factor and a summand for each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1, dim, 1), SCALE))
        self.beta = nn.Parameter(torch.zeros(1, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


class LinearAttention(nn.Module):
    """(b, dim, H, W) -> the same: in each of 4 groups of channels a linear layer over the H * W places."""

    def __init__(self, dim: int, places: int) -> None:
        super().__init__()
        self.norm = Affine(dim)
        self.lin = nn.ModuleList(nn.Linear(places, places) for _ in range(HEADS))
        self.ls = nn.Parameter(torch.full((dim, 1, 1), SCALE))

    def forward(self, x: Tensor) -> Tensor:
        groups = self.norm(x.flatten(2)).chunk(HEADS, dim=1)
        mixed = torch.cat([linear(group) for linear, group in zip(self.lin, groups, strict=True)], dim=1)
        return self.ls * mixed.unflatten(2, x.shape[2:])


class Mixing(Block):
    """Convolution over neighbours, in the later stages over all places, then over channels."""

    def __init__(self, dim: int, places: int | None) -> None:
        super().__init__()
        parts: list[nn.Module] = [TwoKernels(dim, dim, groups=dim)]
        if places is not None:
            parts.append(LinearAttention(dim, places))
        self.block = nn.Sequential(*(Residual(part) for part in [*parts, FeedForward(dim)]))

    def compute(self, x: Tensor) -> Tensor:
        return self.block(x)


class FaceLiVT(Network):
    """A stem that quarters the image's side, four stages, a depthwise convolution over the whole map."""

    head_modules = ("head",)

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        dims = [scaled_channels(dim, config.width) for dim in CHANNELS[config.name]]
        last = LAST if config.width == 1 else scaled_channels(LAST, config.width)
        merged = [_merging(inputs, outputs) for inputs, outputs in pairwise(dims)]
        self.patch_embedds = nn.Sequential(_stem(dims[0]), *merged)
        sides = [halved(image_size, 2 + index) for index in range(4)]
        blocks = [scaled_blocks(count, config.depth) for count in DEPTHS]
        self.stages = nn.Sequential(*map(_stage, range(4), dims, blocks, sides))
        self.pre_head = nn.Sequential(Convolution(dims[3], last), Convolution(last, last, sides[3], groups=last))
        self.head_drop = nn.Dropout(config.dropout)
        linear = nn.Sequential(OrderedDict(bn=nn.BatchNorm1d(last), l=nn.Linear(last, config.embedding_dim)))
        self.head = nn.Sequential(OrderedDict(classifier=linear))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def stage_ends(self) -> tuple[str, str, str, str]:
        return "stages.0", "stages.1", "stages.2", "stages.3"

    def trunk(self, images: Tensor) -> Tensor:
        for embed, stage in zip(self.patch_embedds, self.stages, strict=True):
            images = stage(embed(images))
        return self.head_drop(self.pre_head(images).flatten(1))

    def embedding(self, maps: Tensor) -> Tensor:
        return self.head(maps)


def fused_parameters(model: nn.Module) -> int:
    """Count the parameters after every convolution or linear layer and its BatchNorm have become one, with a bias."""
    count = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, TwoKernels):
            count -= sum(x.numel() for part in (module.repconv, module.bn) for x in part.parameters())
        elif isinstance(module, Convolution):
            count -= module.c.out_channels  # scale and shift become one bias
        elif isinstance(module, nn.BatchNorm1d):
            count -= 2 * module.num_features
    return count


def _stem(outputs: int) -> nn.Module:
    first = nn.Sequential(TwoKernels(3, outputs // 2, stride=2), nn.GELU())
    second = nn.Sequential(TwoKernels(outputs // 2, outputs, stride=2), nn.Identity())
    return nn.Sequential(OrderedDict(stem=nn.Sequential(first, second)))


def _merging(inputs: int, outputs: int) -> nn.Module:
    """Halve the map."""
    spatial = nn.Sequential(TwoKernels(inputs, inputs, stride=2, groups=inputs), Convolution(inputs, outputs))
    return nn.Sequential(OrderedDict(spatial=spatial, channel=Residual(FeedForward(outputs))))


def _stage(index: int, dim: int, blocks: int, side: int) -> nn.Module:
    places = side**2 if index >= GLOBAL_FROM else None
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(*(Mixing(dim, places) for _ in range(blocks)))))
