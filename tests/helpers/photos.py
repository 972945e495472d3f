"""Smooth pictures as photographs are, and their planes."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE = 32


def photo(seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise, (S, S, 3) uint8."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((SIZE, SIZE), Image.BICUBIC)
    return (np.asarray(small).astype(int) + rng.integers(-8, 9, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)


def planes(*images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2)).float()
