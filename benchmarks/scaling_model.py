"""What a centre step on W ranks would take if it were its products and its collectives and nothing else.

    model = products + collectives, seconds

- products: x W^T and P W of a rank's own rows and the whole batch, as centre_step.py measures its floor: a thread,
  into tensors that exist already, scaled by flops to what the step multiplies (sampled rows; 8 N S D where centres are
  trained; shards of more than 262144 rows).
- collectives: those of a step, one after the other, of the very shapes and types that World was handed in one.

Both are measured, not predicted: by the same ranks, all at once, in turn with the steps. A barrier lets all ranks
begin each run together, and a run takes as long as its slowest rank; reported are medians over the runs. Ranks of one
machine share its cores, caches and memory, in the products as in the step: with more ranks than cores both become slow
together. So the model explains the time on this machine. It does not foretell that of a cluster: gloo over loopback
is no network.

Left out: the exponential, the row sums and the chunks' ends; float32 copies of bfloat16 and int8 rows; normalising and
joining what is sent; movement of the centres, read and written row by row; the margin, the loss and its backward; rows
of the batch's classes that were not sampled; waiting for ranks late in the middle of a step, beyond the slowest one's
products. All that is in a step alone, so `over_model` is above 1 as a rule; what speaks for the step is that its chunks
stay in the cache. If the ratio is level over W, products and wire explain how the time grows.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from centre_step import Step, against_products, plain_products
from measure import interleaved_seconds
from torch import Tensor

from partialkd.centres import CentreStore
from partialkd.world.world import World

Seconds = dict[str, list[float]]  # of each run, by what was run


@dataclass(frozen=True)
class Call:
    """A collective, as one rank calls it."""

    name: str  # of World's method
    shape: torch.Size
    dtype: torch.dtype

    def sent(self, ranks: int) -> int:
        """Bytes that a rank sends in a ring."""
        whole = (ranks - 1) * self.shape.numel() * self.dtype.itemsize
        return whole // ranks if self.name == "reduce_scatter" else whole


@dataclass(frozen=True)
class NotingWorld(World):
    """Notes what this rank gathers and reduces."""

    calls: list[Call] = field(default_factory=list)

    def start_all_gather(self, x: Tensor) -> Callable[[], Tensor]:
        self.calls.append(Call("all_gather", x.shape, x.dtype))
        return super().start_all_gather(x)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        self.calls.append(Call("reduce_scatter", x.shape, x.dtype))
        return super().reduce_scatter(x)


def calls_of(step: Step, world: NotingWorld) -> tuple[Call, ...]:
    """What one step sends."""
    world.calls.clear()
    step()
    return tuple(world.calls)


def collectives_alone(calls: Sequence[Call], world: World) -> Step:
    tensors = [torch.ones(call.shape, dtype=call.dtype, device=world.device) for call in calls]

    def step() -> None:
        for call, x in zip(calls, tensors, strict=True):
            getattr(world, call.name)(x)

    return step


def products_alone(args: argparse.Namespace, store: CentreStore, batch: int) -> tuple[Step, float]:
    """-> two products of this rank's rows and `batch` samples, in float32; how much more the step multiplies."""
    own = argparse.Namespace(**{**vars(args), "classes": len(store.shard), "batch": batch, "term": "none"})
    x = torch.randn(batch, args.dim, device=store.device)
    step, flops = plain_products(own, store, (x,), half=False, taught=None)
    return step, against_products(own, flops, {"products": 1.0, "step": 1.0})["floor_seconds"]


def side_by_side(
    args: argparse.Namespace, step: Step, store: CentreStore, calls: Sequence[Call], world: World
) -> Seconds:
    """Collective: steps, products (scaled) and collectives in turn -> this rank's seconds."""
    products, scale = products_alone(args, store, world.size * args.local_batch)
    variants = {"products": products, "collectives": collectives_alone(calls, world), "step": step}
    seconds = interleaved_seconds(variants, args.runs, world.device, world.barrier)
    return {**seconds, "products": [scale * one for one in seconds["products"]]}


def against_model(ranks: Sequence[Seconds]) -> dict[str, Any]:
    """Every rank's seconds -> those of the step and of the model, their ratio, and the parts of the model."""
    slowest = {
        name: statistics.median(max(run) for run in zip(*(one[name] for one in ranks), strict=True))
        for name in ranks[0]
    }
    model = slowest["products"] + slowest["collectives"]
    return {
        "seconds": slowest["step"],
        "model_seconds": model,
        "over_model": slowest["step"] / model,
        "products_seconds": slowest["products"],
        "collectives_seconds": slowest["collectives"],
    }
