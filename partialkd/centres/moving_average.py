"""Move class centres towards the teacher's embeddings of their samples (AdaDistill)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from partialkd.centres.gathered import OwnRows
from partialkd.centres.row_filter import one_for_all

LEAST = 1e-6  # of a and of the centre's cosine, as in the published code

Clip = Literal["code", "poster"]


def move_ema(own: OwnRows, weighted: bool, first_sight: bool, renormalise: bool, clip: Clip = "code") -> Tensor:
    """Move centres as AdaDistill (ECCV 2024), w <- a w + (1 - a) f_t -> the a of every owned sample (N,), else 0.

    a = <f_s, f_t>, or, weighted, a' = <f_s, f_t> <w/|w|, f_t>, clipped as `momentum` says. A class that occurs k times
    moves by the mean of its k steps, each from the old centre: the paper at k = 1, whatever the order and the ranks.
    With `first_sight`, a class not seen before takes the mean of its teacher embeddings (a = 0). The published code
    draws centres at random, knows no first sight, and lets one of several equal labels win.
    """
    store = own.store
    if not len(store.shard):
        return torch.zeros_like(own.student[:, 0])
    rows, _ = one_for_all(own.row, own.owned)
    f_s, f_t, centre = own.student, own.teacher, store.read(rows)
    alpha = momentum((f_s * f_t).sum(1), (store.directions(rows) * f_t).sum(1) if weighted else None, clip)
    if first_sight:
        alpha = alpha * store.seen[rows]
    step = (1 - alpha)[:, None] * (f_t - centre)
    counts = own.owned & step.isfinite().all(1)
    rows, entry = one_for_all(rows, counts)
    group = _groups(rows)
    steps = torch.zeros_like(step).index_add_(0, group, step.where(counts[:, None], 0))
    count = torch.zeros_like(alpha).index_add_(0, group, counts.to(alpha)).clamp_min_(1)
    with store.only_if(counts.any(), rows):
        store.fill(rows, centre[entry] + (steps / count[:, None])[group])
        if renormalise:
            store.renormalise(rows)
    return alpha.where(own.owned, 0)


def certainty(own: OwnRows) -> Tensor:
    """Compute <w/|w|, f_t> of every owned sample (N,), else 0: how sure the teacher is of its class."""
    if not len(own.store.shard):
        return torch.zeros_like(own.teacher[:, 0])
    return (own.store.directions(own.row) * own.teacher).sum(1) * own.owned


def momentum(student: Tensor, centre: Tensor | None, clip: Clip) -> Tensor:
    """Compute a of each sample (n,) from the cosines (n,) of its teacher with its student and, weighted, its centre.

    "code": the published code clips the centre's cosine to [1e-6, 1] before the product, and a likewise after it, so
    that a is 1e-6 where both cosines are negative. "poster": the product clipped to [0, 1], as the formula is printed;
    there two negative cosines make a large a.
    """
    least = LEAST if clip == "code" else 0.0
    if centre is not None:
        student = student * (centre.clamp(least, 1) if clip == "code" else centre)
    return student.clamp(least, 1)


def _groups(rows: Tensor) -> Tensor:
    """Number rows (n,) in [0, n), the same where rows are the same; how many there are stays on the device."""
    ordered, order = rows.sort(stable=True)
    new = torch.ones_like(ordered)
    new[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(order).scatter_(0, order, new.cumsum(0) - 1)
