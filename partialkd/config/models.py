"""Networks, ours and foreign ones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from partialkd.config.base import Moderate, Section

Scale = Annotated[float, Field(gt=0, le=16)]  # of a published network: what is larger would hang where it is built


class ModelConfig(Section):
    name: Literal[
        "iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200",
        "mobilefacenet", "mobilefacenet_large", "mobilefacenet_gdc",
        "vit_tiny", "vit_small", "vit_base",
    ]  # fmt: skip
    embedding_dim: Annotated[int, Field(ge=8, le=4096)] = 512
