"""Small networks of every family, pictures for them, and running statistics of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from partialkd.config import ModelConfig
from partialkd.models import build_model

SMALL = {"width": 0.125, "depth": 0.3, "embedding_dim": 16}
ONE_OF_EACH = [
    "iresnet18", "mobilefacenet", "mobilefacenet_large", "mobilefacenet_gdc", "vit_tiny",
    "ir_se50", "ir152", "curricularface_ir_se50", "evolve_ir50",
    "edgeface_xs", "facelivtv2_xs", "ghostfacenet_v1_s2", "ghostfacenet_v2_s1",
    "mixfacenet_m", "shufflemixfacenet_xs",
]  # fmt: skip


def small(name: str, **changes: object) -> ModelConfig:
    return ModelConfig.model_validate({"name": name, **SMALL, **changes})


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def warmed(config: ModelConfig, size: int) -> nn.Module:
    """A network with running statistics of its own, in eval mode."""
    torch.manual_seed(0)
    model = build_model(config, size)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # one batch says all
    with torch.no_grad():
        model(pictures(4, size))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()
