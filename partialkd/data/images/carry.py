"""Carry the small arrays of a batch to its device together: one page-locked tensor, one copy that nobody waits for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 16  # bytes: where each array begins


def carry(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Put arrays of any types and shapes on the device -> tensors of the same names; on the CPU they share memory."""
    if device.type == "cpu" or not arrays:
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    starts, end = {}, 0
    for name, array in arrays.items():
        starts[name], end = end, end + -(-array.nbytes // _ALIGNED) * _ALIGNED
    together = torch.empty(end, dtype=torch.uint8, pin_memory=True)
    content = together.numpy()
    for name, array in arrays.items():
        content[starts[name] : starts[name] + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = together.to(device, non_blocking=True)
    return {name: _part(there, starts[name], array) for name, array in arrays.items()}


def _part(there: Tensor, start: int, array: np.ndarray) -> Tensor:
    """View the bytes of one array as what they are."""
    dtype = torch.from_numpy(array[:0].reshape(-1)).dtype
    return there[start : start + array.nbytes].view(dtype).view(array.shape)
