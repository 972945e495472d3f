"""Move trainable centres by their gradients: SGD and AdamW that act on a chunk of rows at a time.

On CUDA one kernel moves the rows of a chunk (row_updates.py), elsewhere torch's operations.
Moments (R, D) are float32, or bfloat16 rounded stochastically so that what decays and what is added is not lost. A
moment that is one number per row is float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from partialkd.centres.row_filter import one_for_all
from partialkd.centres.row_updates import moved_by_kernel
from partialkd.centres.store import TINY, CentreStore
from partialkd.config import CentresConfig, OptimizerConfig


class RowOptimizer(Protocol):
    """A rule that moves some rows by their gradient; rows that are not named do not move."""

    weight_decay: float

    @property
    def rule(self) -> str:
        """The name of how rows move, whatever its settings: what a kernel is written for."""

    def step(
        self, store: CentreStore, rows: slice | Tensor, unit_gradient: Tensor, lr: float, valid: Tensor | None = None
    ) -> None:
        """Move rows of the store by dL/du (r, D), u the unit centres; the gradient's memory may be reused.

        valid: (r,) bool of a list: other entries are left alone; None: all.
        """


class TorchOrKernel(ABC):
    """A rule that torch's operations follow, and where rows lie on a GPU a kernel."""

    @property
    @abstractmethod
    def rule(self) -> str:
        """As `RowOptimizer.rule`."""

    @abstractmethod
    def settings(self, lr: float) -> dict[str, Any]:
        """What a kernel is told of the rule."""

    @abstractmethod
    def trial(self, store: CentreStore) -> TorchOrKernel:
        """Make one of its kind for a small store, on which kernel and torch are compared."""

    @abstractmethod
    def by_torch(self, store: CentreStore, rows: slice | Tensor, unit_gradient: Tensor, lr: float) -> None:
        """`step` of rows that are all valid, by torch's operations."""

    def step(
        self, store: CentreStore, rows: slice | Tensor, unit_gradient: Tensor, lr: float, valid: Tensor | None = None
    ) -> None:
        if moved_by_kernel(store, rows, unit_gradient, self, lr, valid):
            return
        if valid is None:
            self.by_torch(store, rows, unit_gradient, lr)
            return
        assert isinstance(rows, Tensor)
        rows, entry = one_for_all(rows, valid)
        with store.only_if(valid.any(), rows):
            self.by_torch(store, rows, unit_gradient[entry], lr)


class RowSGD(TorchOrKernel):
    """SGD with momentum and weight decay, as torch.optim.SGD, on the rows of a step only.

    With w = n u and g = dL/du, dL/dw = (g - <g, u> u) / n. Every pass works in place: on a slice of a float32
    store nothing is copied.
    """

    @property
    def rule(self) -> str:
        return "sgd"

    def __init__(
        self, store: CentreStore, momentum: float, weight_decay: float, dtype: torch.dtype | None = None
    ) -> None:
        """`dtype` of the momentum; None: that of the lengths."""
        self.momentum, self.weight_decay = momentum, weight_decay
        if momentum:
            store.add_moment("momentum", dtype)

    def settings(self, lr: float) -> dict[str, Any]:
        return {"lr": lr, "momentum": self.momentum, "decay": self.weight_decay}

    def trial(self, store: CentreStore) -> RowSGD:
        return RowSGD(store, 0.9, 0.01)

    def by_torch(self, store: CentreStore, rows: slice | Tensor, unit_gradient: Tensor, lr: float) -> None:
        unit, length = store.directions(rows), store.length[rows]
        inverse = 1 / length.clamp_min(TINY)
        along = self.weight_decay * length - torch.linalg.vecdot(unit_gradient, unit) * inverse
        if self.momentum:
            step = store.moments["momentum"][rows].to(length.dtype)
            step.mul_(self.momentum).addcmul_(unit_gradient, inverse[:, None])
        else:
            step = unit_gradient.mul_(inverse[:, None])
        step.addcmul_(unit, along[:, None])
        if self.momentum:
            store.put(store.moments["momentum"], rows, step, purpose=1)
        store.replace(rows, unit.mul_(length[:, None]).sub_(step, alpha=lr))


class RowAdamW(TorchOrKernel):
    """AdamW, as torch.optim.AdamW, on the rows of a step only; each row counts its own steps.

    With `second = "row"` the second moment is one number per row, the mean square of the row's gradient: every number
    of a row then takes its step at the row's own rate, and a step keeps the gradient's direction but for the eps.
    Source: the row factor of Adafactor (arXiv:1804.04235) without the column's; one second moment per block of weights,
    here a centre, as Adam-mini (arXiv:2406.16793).
    """

    def __init__(
        self,
        store: CentreStore,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        second: Literal["full", "row"] = "full",
        dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype` of moments (R, D); None: that of the lengths."""
        self.betas, self.eps, self.weight_decay, self.by_row = betas, eps, weight_decay, second == "row"
        store.add_moment("first", dtype)
        store.add_moment("second", None if self.by_row else dtype, per_row=self.by_row)
        store.add_moment("count", per_row=True)

    @property
    def rule(self) -> str:
        return "adamw" if self.by_row else "adamw, full"

    def settings(self, lr: float) -> dict[str, Any]:
        return {"lr": lr, "betas": self.betas, "eps": self.eps, "decay": self.weight_decay}

    def trial(self, store: CentreStore) -> RowAdamW:
        return RowAdamW(store, (0.9, 0.99), 1e-8, 0.01, "row" if self.by_row else "full")

    def by_torch(self, store: CentreStore, rows: slice | Tensor, unit_gradient: Tensor, lr: float) -> None:
        (beta1, beta2), moments = self.betas, store.moments
        unit, length = store.directions(rows), store.length[rows]
        radial = torch.linalg.vecdot(unit_gradient, unit)
        gradient = (unit_gradient - radial[:, None] * unit) / length.clamp_min(TINY)[:, None]
        square = gradient.square().mean(1) if self.by_row else gradient.square()
        first = moments["first"][rows].to(length.dtype).lerp(gradient, 1 - beta1)
        second = moments["second"][rows].to(length.dtype) * beta2 + (1 - beta2) * square
        count = moments["count"][rows] + 1
        for purpose, (name, moment) in enumerate((("first", first), ("second", second), ("count", count)), start=1):
            store.put(moments[name], rows, moment, purpose)
        mean = first / (1 - beta1**count)[:, None]
        deviation = (second.view(len(second), -1) / (1 - beta2**count)[:, None]).sqrt_().add_(self.eps)
        centre = unit * (length * (1 - lr * self.weight_decay))[:, None]
        store.replace(rows, centre.sub_(mean.div_(deviation), alpha=lr))


def make_row_optimizer(
    store: CentreStore, config: OptimizerConfig, centres: CentresConfig | None = None
) -> RowOptimizer:
    """Make the optimiser of trainable centres; its moments, kept as `centres` says, become part of the store."""
    kept = centres or CentresConfig()
    dtype = torch.bfloat16 if kept.moments == "bf16" else None
    if config.name == "adamw":
        return RowAdamW(store, config.betas, config.eps, config.weight_decay, kept.second_moment, dtype)
    return RowSGD(store, config.momentum, config.weight_decay, dtype)
