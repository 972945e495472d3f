"""What the running processor does, found out by asking it: for claims that are not the same on all."""

from __future__ import annotations

from functools import cache

import torch


@cache
def products_depend_on_place(dim: int, samples: int) -> bool:
    """Whether products of one row (1, dim) with a batch (samples, dim) have other bits where the row lies elsewhere.

    Math libraries may begin at an aligned number, and so add in another order.
    """
    torch.manual_seed(0)
    memory, batch, row = torch.zeros(64, dim), torch.randn(dim, samples), torch.randn(1, dim)
    logits, sums = set(), set()
    for place in range(64):
        memory[place] = row
        there = memory[place : place + 1]
        logits.add((there @ batch).numpy().tobytes())
        sums.add(torch.zeros(samples, dim).addmm_(batch[:1].T, there).numpy().tobytes())
    return len(logits) > 1 or len(sums) > 1
