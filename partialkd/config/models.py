"""Networks, ours and foreign ones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from partialkd.config.base import Free, Moderate, Section

Scale = Annotated[float, Field(gt=0, le=16)]  # of a published network: what is larger would hang where it is built


class ModelConfig(Section):
    """A network of ours."""

    name: Literal[
        "iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200",
        "mobilefacenet", "mobilefacenet_large", "mobilefacenet_gdc",
        "vit_tiny", "vit_small", "vit_base",
        "ir18", "ir34", "ir50", "ir101", "ir152", "ir200", "ir_se50", "ir_se101", "ir_se152", "ir_se200",
        "curricularface_ir50", "curricularface_ir101", "curricularface_ir152",
        "curricularface_ir_se50", "curricularface_ir_se101", "curricularface_ir_se152",
        "evolve_ir50", "evolve_ir101", "evolve_ir152", "evolve_ir_se50", "evolve_ir_se101", "evolve_ir_se152",
        "edgeface_xxs", "edgeface_xs", "edgeface_s", "edgeface_base",
        "facelivtv2_xs", "facelivtv2_s", "facelivtv2_m", "facelivtv2_l",
        "ghostfacenet_v1_s1", "ghostfacenet_v1_s2", "ghostfacenet_v2_s1", "ghostfacenet_v2_s2",
        "mixfacenet_xs", "mixfacenet_s", "mixfacenet_m",
        "shufflemixfacenet_xs", "shufflemixfacenet_s", "shufflemixfacenet_m",
    ]  # fmt: skip
    embedding_dim: Annotated[int, Field(ge=8, le=4096)] = 512
    width: Scale = 1.0  # multiplies the channel counts; 1.0 is the published network
    depth: Scale = 1.0  # multiplies the blocks of each stage, at least one
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    channels_last: Free[bool | None] = None  # memory layout; None: on CUDA, not on the CPU. Differs by rounding
    activation_checkpointing: bool = False


class InputConfig(Section):
    """What a foreign network expects: pixels 0..255 become (pixel - mean) / std in this order and size."""

    size: Annotated[int, Field(ge=16, le=512)] = 112
    mean: Annotated[float, Field(ge=-1e6, le=1e6)] = 127.5
    std: Moderate = 127.5
    colour: Literal["rgb", "bgr"] = "rgb"
