"""Describe the global batch as the owner of one shard sees it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from partialkd.centres.store import CentreStore


@dataclass(frozen=True)
class OwnRows:
    """The samples of the global batch, and where this shard holds their classes."""

    store: CentreStore
    student: Tensor  # (N, D) unit length
    teacher: Tensor  # (N, D) unit length
    owned: Tensor  # (N,) bool
    row: Tensor  # (N,) int64, 0 where not owned


def where_finite(rows: Tensor) -> Tensor:
    """Put zeros in the place of every row of (n, m) that holds NaN or infinity."""
    return rows.where(rows.isfinite().all(1, keepdim=True), 0)
