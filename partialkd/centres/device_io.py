"""What the host and the device tell each other in a step, without one waiting for the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def told(x: Tensor) -> tuple[Tensor, Callable[[], bool]]:
    """-> x on the CPU, and whether it is complete there: on the CPU at once."""
    if not x.is_cuda:
        return x, lambda: True
    there = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return there, event.query


def sent(numbers: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """These numbers (n,) on the device."""
    return torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def without_gaps(rows: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Of entries (n,) on the CPU those that are valid; on CUDA all, for their number would have to be waited for."""
    return (rows, valid) if rows.is_cuda else (rows[valid], valid[valid])
