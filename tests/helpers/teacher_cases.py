"""A small teacher's network, pictures for it, and the section of its checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from partialkd.config import InputConfig, ModelConfig, TeacherConfig

CPU = torch.device("cpu")
CONFIG = ModelConfig(name="mobilefacenet_gdc", width=0.125, depth=0.3, embedding_dim=16)


def pictures(count: int, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def checkpoint(path: Path, **changes: object) -> TeacherConfig:
    settings = {"source": "checkpoint", "path": str(path), "model": CONFIG, "input": InputConfig(size=32)}
    return TeacherConfig.model_validate({**settings, **changes})
