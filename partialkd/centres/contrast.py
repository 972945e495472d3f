"""What the engine gives back for a micro-step, and what a method may have it do before the sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from partialkd.centres.gathered import OwnRows
from partialkd.centres.sweeps.bend import Bend

# Reads or moves owned centres before the sweep -> (N,) or (N, n), 0 where not owned.
Look = Callable[[OwnRows], Tensor]
# Target cosines of the global batch (N,), the same on all ranks, without gradient -> how negatives are bent.
Bending = Callable[[Tensor], Bend]


@dataclass(frozen=True)
class Contrast:
    """One rank's samples against all classes."""

    target: Tensor  # (b,) cosine with the own centre
    negative: Tensor  # (b,) log sum over the other classes of exp(scale * cosine), bent cosines where there is a bend
    looked: Tensor  # (b,) or (b, n) what `look` returned for these samples; zeros without one
    centre: Tensor  # (b, D) the own centre, of unit length
    first: int  # place of the first of these samples in the global batch of the optimiser step


def with_slope(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """Make a tensor equal to `value` (b,) whose gradient to x (b, D) is `slope` (b, D)."""
    inner = (x * slope).sum(1)
    return value + (inner - inner.detach())
