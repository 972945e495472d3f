"""Backends to choose from without CUDA: stand-ins for kernels, and rows that have moved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from partialkd.centres.row_optimizers import RowSGD
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps import fastest as measured
from partialkd.centres.sweeps.base import Queries
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.fastest import FastestSweep
from partialkd.centres.sweeps.fused import FusedSweep
from partialkd.centres.sweeps.tuner import Tuner

CPU = torch.device("cpu")
ROWS = 64  # measured with


class FakeKernels(FusedSweep):
    """Chunked, off by a factor, and remembering over how many rows it was asked."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__(64.0)
        self.asked: list[int] = []

    def version(self) -> str:
        return ""

    def sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        self.asked.append(len(store.shard))
        total, partition = ChunkedSweep.sums(self, store, queries)
        return total * self.factor, partition

    def move(self, store: CentreStore, *rest: Any) -> None:
        self.asked.append(len(store.shard))
        ChunkedSweep.move(self, store, *rest)
        store.length *= self.factor


def of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure with these."""
    monkeypatch.setattr(measured, "TUNING_ROWS", ROWS)
    monkeypatch.setattr(measured, "LEAST_ROWS", ROWS)


def moved(store: CentreStore, queries: Queries, rows: Any = None) -> tuple[Any, ...]:
    """Arguments of `move`."""
    weight = torch.full_like(queries.embeddings[:, 0], 1e-28)
    return store, [(queries, weight, torch.full_like(weight, -0.1))], rows or RowSGD(store, 0.9, 0.01), 0.1


class Clock:
    """Runs, and says that chunked took one second and fused as long as asked."""

    def __init__(self, fused: float) -> None:
        self.fused, self.measured = fused, 0

    def __call__(self, run: Callable[[], object]) -> float:
        run()
        self.measured += 1
        return 1.0 if self.measured % 2 else self.fused


def made(path: Path, fused_seconds: float, factor: float = 1.0) -> tuple[FastestSweep, FakeKernels, Clock]:
    kernels, clock = FakeKernels(), Clock(fused_seconds)
    kernels.factor = factor
    return FastestSweep(ChunkedSweep(64.0), {"fused": kernels}, Tuner(path / "tuning.json"), clock), kernels, clock
