"""Pass numbers between the host and the device in a step, without one waiting for the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def to_host(x: Tensor) -> tuple[Tensor, Callable[[], bool]]:
    """Start a copy of x to the CPU -> the copy (of a CPU tensor: itself), and a call that says if it is complete."""
    if not x.is_cuda:
        return x, lambda: True
    there = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return there, event.query


def to_device(numbers: Sequence[int] | np.ndarray, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Put these numbers (n,) on the device."""
    return torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def without_gaps(rows: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the entries (n,) that are not valid; on CUDA keep all, for their number would have to be waited for."""
    return (rows, valid) if rows.is_cuda else (rows[valid], valid[valid])
