"""IR and IR-SE networks of face.evoLVe, CurricularFace, TFace, AdaFace and CVLface, for images of any size.

Shapes: (b, 3, H, H) -> (b, embedding_dim), not normalised. Three layouts, whose checkpoints load unchanged:
    ir18 .. ir200, ir_se50 .. ir_se200    TFace, AdaFace, CVLface: BatchNorm after the first convolution of a block; the
                                          last BatchNorm has no scale and shift; 152 and 200 are built of bottlenecks
    curricularface_ir50 .. _ir_se152      CurricularFace: none after the first convolution; the last one as above
    evolve_ir50 .. _ir_se152              face.evoLVe (also InsightFace_Pytorch's ir_se50): as CurricularFace, but the
                                          last BatchNorm has scale and shift
What sets them apart from iresnet.py: a shortcut without convolution wherever the channels stay, also at stride 2.
Sources, names and sizes read from: TFace recognition/torchkit/backbone/model_irse.py at 011815e (Apache-2.0), CVLface
cvlface/research/recognition/code/run_v1/models/iresnet/model.py at d3d09c9 (MIT), CurricularFace backbone/model_irse.py
at d380265 (MIT), face.evoLVe backbone/model_irse.py at 0c08eca (MIT). SE: arXiv:1709.01507.
Differs: AdaFace normalises what it emits, CurricularFace emits its maps as well; here the raw embedding alone. `width`
and `depth` scale channels and blocks; the fully connected layer fits the image size; dropout is the configuration's
(there 0.4 or 0.5, in training only).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor, nn

from partialkd.config import ModelConfig
from partialkd.models.network import Block, Network, halved, scaled_blocks, scaled_channels

BLOCKS = {
    18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 101: (3, 13, 30, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)
}  # fmt: skip
REDUCTION = 16  # of the channels between squeeze and excitation


@dataclass(frozen=True)
class Layout:
    """Facts of a published network."""

    layers: int
    se: bool = False
    middle_norm: bool = True  # BatchNorm after the first convolution of a block
    affine: bool = False  # scale and shift in the last BatchNorm

    @property
    def bottlenecks(self) -> bool:
        return self.middle_norm and self.layers > 101


def _layouts() -> dict[str, Layout]:
    found = {f"ir{layers}": Layout(layers) for layers in BLOCKS}
    found |= {f"ir_se{layers}": Layout(layers, se=True) for layers in (50, 101, 152, 200)}
    for family, affine in (("curricularface", False), ("evolve", True)):
        for kind in ("ir", "ir_se"):
            for layers in (50, 101, 152):
                found[f"{family}_{kind}{layers}"] = Layout(layers, kind == "ir_se", middle_norm=False, affine=affine)
    return found


LAYOUTS = _layouts()


class SqueezeExcite(nn.Module):
    """(b, c, H, W) -> the same, each channel times a number in (0, 1) made of all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        between = max(1, channels // REDUCTION)
        self.fc1 = nn.Conv2d(channels, between, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(between, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class IRBlock(Block):
    """(b, inputs, H, H) -> (b, outputs, ceil(H / stride), ...): the sum of residual and shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, layout: Layout) -> None:
        super().__init__()
        self.res_layer = _residual(inputs, outputs, stride, layout)
        if inputs == outputs:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def compute(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IR(Network):
    """Four stages, each halving the map; flattened maps go through one linear layer."""

    head_modules = ("output_layer",)

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        layout = LAYOUTS[config.name]
        unit = scaled_channels(64, config.width)
        last = (32 if layout.bottlenecks else 8) * unit
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, unit, 3, padding=1, bias=False), nn.BatchNorm2d(unit), nn.PReLU(unit)
        )
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last),
            nn.Dropout(config.dropout),
            nn.Flatten(),
            nn.Linear(last * halved(image_size, 4) ** 2, config.embedding_dim),
            nn.BatchNorm1d(config.embedding_dim, affine=layout.affine),
        )
        self.body = _body(unit, layout, config.depth)
        self.last_blocks = [
            end - 1 for end in accumulate(scaled_blocks(n, config.depth) for n in BLOCKS[layout.layers])
        ]
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stage_ends(self) -> tuple[str, str, str, str]:
        first, second, third, last = (f"body.{block}" for block in self.last_blocks)
        return first, second, third, last

    def trunk(self, images: Tensor) -> Tensor:
        return self.output_layer[:3](self.body(self.input_layer(images)))

    def embedding(self, maps: Tensor) -> Tensor:
        return self.output_layer[3:](maps)


def _body(unit: int, layout: Layout, depth: float) -> nn.Sequential:
    """Blocks of all stages in one row, as they are numbered there."""
    blocks, inputs = [], unit
    for stage, count in enumerate(BLOCKS[layout.layers]):
        outputs = (4 if layout.bottlenecks else 1) * unit << stage
        for index in range(scaled_blocks(count, depth)):
            blocks.append(IRBlock(inputs, outputs, 1 if index else 2, layout))
            inputs = outputs
    return nn.Sequential(*blocks)


def _residual(inputs: int, outputs: int, stride: int, layout: Layout) -> nn.Sequential:
    parts: list[nn.Module] = [nn.BatchNorm2d(inputs)]
    if layout.bottlenecks:
        inner = outputs // 4
        for source, kernel in ((inputs, 1), (inner, 3)):
            parts += [nn.Conv2d(source, inner, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(inner)]
            parts.append(nn.PReLU(inner))
        parts.append(nn.Conv2d(inner, outputs, 1, stride, bias=False))
    else:
        parts.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
        parts += [nn.BatchNorm2d(outputs)] if layout.middle_norm else []
        parts += [nn.PReLU(outputs), nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)]
    parts.append(nn.BatchNorm2d(outputs))
    named = OrderedDict((str(index), part) for index, part in enumerate(parts))
    if layout.se:  # the one has it under its own name, the others count on
        named["se_block" if layout.middle_norm else str(len(parts))] = SqueezeExcite(outputs)
    return nn.Sequential(named)
