"""Centres that hold NaN or infinity, named by class."""

from __future__ import annotations

import torch
from torch import Tensor

from partialkd.centres.store import CentreStore
from partialkd.storage.finite import first_few

ROWS_AT_ONCE = 1 << 16


def floating(store: CentreStore) -> list[Tensor]:
    """Everything of a shard that can be other than finite; leading dimension R."""
    return [value for value in store.state().values() if value.is_floating_point()]


def centre_problem(store: CentreStore) -> str | None:
    """Name the classes of this shard whose centre, or its moments, hold NaN or infinity. Reads all of it."""
    classes: list[int] = []
    for start in range(0, len(store.shard), ROWS_AT_ONCE):
        parts = [value[start : start + ROWS_AT_ONCE] for value in floating(store)]
        finite = torch.stack([part.isfinite().view(len(part), -1).all(1) for part in parts]).all(0)
        classes += [store.shard[start + row] for row in (~finite).nonzero().squeeze(1).tolist()]
    return f"NaN or infinity in the centres of classes {first_few(map(str, classes))}" if classes else None
