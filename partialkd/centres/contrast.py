"""What the centres tell a method of its samples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Contrast:
    """One rank's samples against all classes."""

    target: Tensor  # (b,) cosine with the own centre
    negative: Tensor  # (b,) log sum over the other classes of exp(scale * cosine)
    looked: Tensor  # (b,) what `look` returned for these samples; zeros without one
    centre: Tensor  # (b, D) the own centre, of unit length


def with_slope(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """Make a tensor equal to `value` (b,) whose gradient to x (b, D) is `slope` (b, D)."""
    inner = (x * slope).sum(1)
    return value + (inner - inner.detach())
