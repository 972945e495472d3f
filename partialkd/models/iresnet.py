"""IResNet 18/34/50/100/200: the residual network of ArcFace, for images of any size.

Shapes: (b, 3, H, H) -> (b, embedding_dim). state_dict keys and shapes are those of InsightFace's arcface_torch
(r18 .. r200), so its published checkpoints load unchanged; parity holds in eval and in training mode.
Source: arXiv:1801.07698 (ArcFace), section 3.2; layer facts from arcface_torch/backbones/iresnet.py.
Differs: `width` and `depth` scale channels and blocks; the fully connected layer fits the image size (7 x 7 maps at
112); recomputation leaves the running statistics alone.
As published: the scale of the last BatchNorm stays one (requires_grad False), convolutions start from N(0, 0.1^2).
"""

from __future__ import annotations

from torch import Tensor, nn

from partialkd.config import ModelConfig
from partialkd.models.network import Block, Network, halved, scaled_blocks, scaled_channels

STAGES = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
}


class ResidualBlock(Block):
    """(b, inputs, H, H) -> (b, outputs, ceil(H / stride), ...): BN, conv, BN, PReLU, conv, BN, plus the input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def compute(self, x: Tensor) -> Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(Network):
    """Four stages, each halving the map; flattened maps go through one linear layer."""

    head_modules = ("fc", "features")

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        unit = scaled_channels(64, config.width)
        self.conv1 = nn.Conv2d(3, unit, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(unit)
        self.prelu = nn.PReLU(unit)
        blocks = [scaled_blocks(count, config.depth) for count in STAGES[config.name]]
        self.layer1 = _stage(unit, unit, blocks[0])
        self.layer2 = _stage(unit, 2 * unit, blocks[1])
        self.layer3 = _stage(2 * unit, 4 * unit, blocks[2])
        self.layer4 = _stage(4 * unit, 8 * unit, blocks[3])
        self.bn2 = nn.BatchNorm2d(8 * unit)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(8 * unit * halved(image_size, 4) ** 2, config.embedding_dim)
        self.features = nn.BatchNorm1d(config.embedding_dim)
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)

    @property
    def stage_ends(self) -> tuple[str, str, str, str]:
        return "layer1", "layer2", "layer3", "layer4"

    def trunk(self, images: Tensor) -> Tensor:
        maps = self.prelu(self.bn1(self.conv1(images)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return self.dropout(self.bn2(maps).flatten(1))

    def embedding(self, maps: Tensor) -> Tensor:
        return self.features(self.fc(maps))


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    first = ResidualBlock(inputs, outputs, stride=2)
    return nn.Sequential(first, *(ResidualBlock(outputs, outputs, stride=1) for _ in range(blocks - 1)))
