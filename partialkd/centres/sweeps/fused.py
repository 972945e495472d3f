"""Sweep with one Triton kernel each (sum_kernel, row_kernels); the rows of a trainable store move within the second.

Beyond the store it needs O and Z a few times (once per split), and where rows are sampled or unseen lists of those
kept, in which the filter marks those that are not (listed_rows.py).

What has no kernel goes to the chunked path: stores of other types than float32 and bfloat16, D over 1024, bent
negatives, AdamW with a full second moment, and the movement of rows by several micro-steps at once.
Products are bfloat16 where `centres.products` or the store is: float32 rows are rounded within the kernel, as they are
read, and move in float32; p and x are rounded too. With exact products float32 stores take the kernels, without matrix
units, and others the chunked path. Where only the movement of rows has no kernel, that takes the chunked path in the
precision that the kernels summed in.
Stochastic rounding draws other bits than `rounding.Draw`, as much a function of (seed, step, class id, column) alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from partialkd.centres.row_optimizers import RowAdamW, RowOptimizer, RowSGD
from partialkd.centres.row_updates import keys_of
from partialkd.centres.store import TINY, CentreStore
from partialkd.centres.sweeps.base import MicroStep, Queries, offset_of
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.fastest_products import make_products
from partialkd.centres.sweeps.listed_rows import kept_rows
from partialkd.centres.sweeps.products import Products
from partialkd.centres.sweeps.tiles import LARGEST_DIM, Tiles, candidates, kind_of, splits_of
from partialkd.centres.sweeps.tuner import LEAST_ROWS, TUNING_ROWS, Tuner, seconds_on_gpu, shape_of
from partialkd.config import CentresConfig

if TYPE_CHECKING:
    from types import ModuleType

# Stores that the kernels take, by `centres.products`; "auto": in the type of the store, unless products are rounded.
BOTH = (torch.float32, torch.bfloat16)
KERNEL_TYPES = {"auto": BOTH, "fp32": (torch.float32,), "bf16": BOTH}
RULES = ("sgd", "adamw")  # of row optimisers, that there are kernels for
INTERPRETER_BYTES, INTERPRETER_PROCESSORS = 227 * 1024, 4  # stand-ins for a device


class FusedSweep(ChunkedSweep):
    """One kernel per sweep, where the store and the optimiser have one; else the chunked path."""

    competes = True

    def __init__(
        self,
        scale: float,
        chunk_rows: int | None = None,
        products: Products | None = None,
        types: tuple[torch.dtype, ...] = BOTH,
        rounded: bool = False,
    ) -> None:
        """Build it; products: of the chunked path; types: of stores with kernels; rounded: of float32 rows."""
        super().__init__(scale, chunk_rows, products)
        self.types, self.rounded, self.tuner = types, rounded, Tuner()

    @classmethod
    def make(cls, scale: float, config: CentresConfig, products: Products) -> Self:
        rounded = config.products == "bf16" or products.copied > 0
        return cls(scale, config.chunk_rows, products, KERNEL_TYPES[config.products], rounded)

    @classmethod
    def unable(cls, device: torch.device) -> str | None:
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return f'must be "chunked" or "auto" where there is no GPU, got "fused" on {device}'
        if find_spec("triton") is None:
            return '"fused" needs the package triton, which CUDA builds of torch bring'
        return _trial_kernel().problem_with_triton(device) if torch.cuda.is_available() else None

    def sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        if not self.sums_by_itself(store, queries):
            return super().sums(store, queries)
        x, own = self._operands(store, queries)
        total, partition = torch.zeros_like(queries.embeddings), torch.zeros_like(queries.embeddings[:, 0])

        def run(tiles: Tiles, rows: Tensor | None, unit: Tensor) -> tuple[Tensor, Tensor]:
            count = len(unit) if rows is None else len(rows)
            blocks, streamed = -(-len(x) // tiles.held), -(-count // tiles.streamed)
            splits = splits_of(blocks, streamed, _processors(store.device))
            return _kernels().sums(unit, x, own, rows, self.scale, offset_of(self.scale), tiles, splits)

        tiles = self._tiles("sums", store, len(x), lambda tiles: run(tiles, None, store.unit[:TUNING_ROWS]))
        for rows in kept_rows(queries.filter):
            part, terms = run(tiles, rows, store.unit)
            total += part
            partition += terms
        return total, partition

    def move(self, store: CentreStore, batches: Sequence[MicroStep], optimizer: RowOptimizer, lr: float) -> None:
        """Move by the kernels a single micro-step of what they know, all else chunk by chunk."""
        if not all(self.sums_by_itself(store, queries) for queries, _, _ in batches):
            super().move(store, batches, optimizer, lr)
            return
        if len(batches) != 1 or optimizer.rule not in RULES:
            self.after_kernels(store).move(store, batches, optimizer, lr)
            return
        ((queries, weight, target),) = batches
        drawn = keys_of(store.draw)
        keys = drawn[:2] if drawn else None
        x, own = self._operands(store, queries)
        pull = _row_kernels().Pull(
            x, own, weight, target, self.scale, offset_of(self.scale), TINY, keys, store.shard.start, store.ids
        )
        run = _mover(optimizer, lr)
        state = {"unit": store.unit, "length": store.length, **store.moments}
        trial: dict[str, Tensor] = {}

        def try_out(tiles: Tiles) -> None:
            if not trial:  # rows that may be moved again and again, made only where something is measured
                trial.update((name, part[:TUNING_ROWS].clone()) for name, part in state.items())
            run(trial, pull, None, tiles)

        tiles = self._tiles(optimizer.rule, store, len(x), try_out)
        for rows in kept_rows(queries.filter):
            run(state, pull, rows, tiles)

    def after_kernels(self, store: CentreStore) -> ChunkedSweep:
        """Chunked path for rows whose Z the kernels summed: recomputed p must be rounded as they were there."""
        kind: Literal["fp32", "bf16"] = "fp32" if self.multiplied(store) == torch.float32 else "bf16"
        return ChunkedSweep(self.scale, self.chunk_rows, make_products(kind, store.device))

    def sums_by_itself(self, store: CentreStore, queries: Queries) -> bool:
        return self.takes(store) and queries.bend is None

    def moves_by_itself(self, store: CentreStore, optimizer: RowOptimizer) -> bool:
        return self.takes(store) and optimizer.rule in RULES

    def version(self) -> str:
        return f"Triton {_kernels().triton.__version__}"

    def takes(self, store: CentreStore) -> bool:
        """Whether the kernels take these rows."""
        known = store.unit.dtype in self.types and store.dim <= LARGEST_DIM
        return known and store.unit.is_contiguous() and len(store.shard) < 2**31

    def multiplied(self, store: CentreStore) -> torch.dtype:
        """Type of the kernels' operands."""
        return torch.bfloat16 if self.rounded else store.unit.dtype

    def _operands(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        """Prepare a batch for the kernels -> x (N, D) in the type of products, own row (N,) int32 or -1."""
        own = torch.where(queries.owned, queries.row, -1).to(torch.int32)
        return queries.embeddings.to(self.multiplied(store)).contiguous(), own

    def _tiles(self, kernel: str, store: CentreStore, samples: int, run: Any) -> Tiles:
        """The tiles for this store and batch: measured, or the default where that is not worth it or not wanted."""
        streams = store.unit.dtype if kernel == "sums" else self.multiplied(store)
        tried = candidates(store.dim, kind_of(streams, self.multiplied(store)), _shared_bytes(store.device))
        small = len(store.shard) < LEAST_ROWS or store.device.type != "cuda"
        if small or torch.are_deterministic_algorithms_enabled():
            return tried[0]
        few = len(store.shard) if len(store.shard) < TUNING_ROWS else None
        key = f"{shape_of(kernel, store, samples, few)}, {self.multiplied(store)}, {self.version()}"
        return self.tuner.choose(key, tried, lambda tiles: _seconds_if_it_fits(lambda: run(tiles)))


def _mover(optimizer: RowOptimizer, lr: float) -> Callable[[dict[str, Tensor], Any, Tensor | None, Tiles], None]:
    """The kernel that moves rows as this optimiser does, with its settings."""
    kernels = _row_kernels()
    if isinstance(optimizer, RowAdamW):
        return partial(kernels.move_adamw, **optimizer.settings(lr))
    assert isinstance(optimizer, RowSGD)
    return partial(kernels.move_sgd, **optimizer.settings(lr))


def _seconds_if_it_fits(run: Callable[[], object]) -> float | None:
    """Time a run; None if the device has no room for the tiles."""
    try:
        return seconds_on_gpu(run)
    except _kernels().DOES_NOT_FIT:
        return None


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETER_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may have."""
    if device.type != "cuda":
        return INTERPRETER_BYTES
    return _kernels().shared_bytes(device)


def _kernels() -> ModuleType:
    from partialkd.centres.sweeps import sum_kernel as kernels

    return kernels


def _trial_kernel() -> ModuleType:
    from partialkd.centres.sweeps import trial_kernel

    return trial_kernel


def _row_kernels() -> ModuleType:
    from partialkd.centres.sweeps import row_kernels

    return row_kernels
