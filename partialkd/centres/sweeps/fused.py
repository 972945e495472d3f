"""Sweep with one Triton kernel each (sum_kernel, row_kernels); the rows of a trainable store move within the second.

Beyond the store it needs O and Z a few times (once per split), and where rows are sampled or unseen lists of those
kept, in which the filter marks those that are not, LISTED_AT_ONCE rows at a time.

What has no kernel goes to the chunked path: stores of other types than float32 and bfloat16, D over 1024, bent
negatives, AdamW with a full second moment, and the movement of rows by several micro-steps at once.
Differs from the chunked path: products are in the type of the store, so with bfloat16 rows p and x are rounded too.
Where `centres.products` names the other precision, the store goes to the chunked path; where only the movement of
rows has no kernel, that takes the chunked path in the precision of the store.
Stochastic rounding draws other bits than `rounding.Draw`, as much a function of (seed, step, class id, column) alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from partialkd.centres.device_io import to_device
from partialkd.centres.row_filter import RowFilter
from partialkd.centres.row_optimizers import RowAdamW, RowOptimizer, RowSGD
from partialkd.centres.store import TINY, CentreStore
from partialkd.centres.sweeps.base import MicroStep, Queries, offset_of
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.chunks import side_by_side
from partialkd.centres.sweeps.fastest_products import make_products
from partialkd.centres.sweeps.products import Products
from partialkd.centres.sweeps.tiles import LARGEST_DIM, Tiles, candidates, splits_of
from partialkd.centres.sweeps.tuner import TUNING_ROWS, Tuner, seconds_on_gpu, shape_of
from partialkd.config import CentresConfig
from partialkd.counter_random import mix_word

if TYPE_CHECKING:
    from types import ModuleType

# Stores that the kernels multiply with in the precision of `centres.products`.
KERNEL_TYPES = {"auto": (torch.float32, torch.bfloat16), "fp32": (torch.float32,), "bf16": (torch.bfloat16,)}
LISTED_AT_ONCE = 1 << 20  # rows
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
        types: tuple[torch.dtype, ...] = KERNEL_TYPES["auto"],
    ) -> None:
        """Build it; products: of the chunked path; types: of stores that the kernels take."""
        super().__init__(scale, chunk_rows, products)
        self.types, self.tuner = types, Tuner()

    @classmethod
    def make(cls, scale: float, config: CentresConfig, products: Products) -> Self:
        return cls(scale, config.chunk_rows, products, KERNEL_TYPES[config.products])

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
        x, own = _operands(store, queries)
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
        x, own = _operands(store, queries)
        pull = _row_kernels().Pull(
            x, own, weight, target, self.scale, offset_of(self.scale), TINY, _keys(store), store.shard.start, store.ids
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
        kind: Literal["fp32", "bf16"] = "fp32" if store.unit.dtype == torch.float32 else "bf16"
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

    def _tiles(self, kernel: str, store: CentreStore, samples: int, run: Any) -> Tiles:
        """The tiles for this store and batch: measured, or the default where that is not worth it or not wanted."""
        tried = candidates(store.dim, store.unit.element_size(), _shared_bytes(store.device))
        small = len(store.shard) < TUNING_ROWS or store.device.type != "cuda"
        if small or torch.are_deterministic_algorithms_enabled():
            return tried[0]
        key = f"{shape_of(kernel, store, samples)}, {self.version()}"
        return self.tuner.choose(key, tried, lambda tiles: _seconds_if_it_fits(lambda: run(tiles)))


def _mover(optimizer: RowOptimizer, lr: float) -> Callable[[dict[str, Tensor], Any, Tensor | None, Tiles], None]:
    """The kernel that moves rows as this optimiser does, with its settings."""
    kernels = _row_kernels()
    if isinstance(optimizer, RowAdamW):
        rule = {"lr": lr, "betas": optimizer.betas, "eps": optimizer.eps, "decay": optimizer.weight_decay}
        return partial(kernels.move_adamw, **rule)
    assert isinstance(optimizer, RowSGD)
    return partial(kernels.move_sgd, lr=lr, momentum=optimizer.momentum, decay=optimizer.weight_decay)


def kept_rows(kept: RowFilter) -> Iterator[Tensor | None]:
    """List the rows that the filter keeps, for kernels: (n,) int32 at a time, LISTED_AT_ONCE at most; None: all rows.

    Those of the batch that were not sampled come last. -1 stands where a row is not kept, so that the host knows n.
    """
    if kept.everything:
        if kept.count:
            yield None
        return
    for runs in side_by_side(kept.runs, LISTED_AT_ONCE):
        rows = _rows_of(runs, kept.positives.device)
        yield rows if kept.seen is None else rows.where(kept.holds(rows.long()), -1)
    if kept.sampled is not None:
        outside = kept.outside
        if len(outside.rows):
            yield outside.rows.to(torch.int32).where(outside.valid, -1)


def _rows_of(runs: Sequence[slice], device: torch.device) -> Tensor:
    """Every row of these runs (n,) int32, in order, without asking the device anything."""
    lengths = [run.stop - run.start for run in runs]
    shifts = [run.start - before for run, before in zip(runs, accumulate(lengths, initial=0), strict=False)]
    count = sum(lengths)
    each = to_device(shifts, device, torch.int32).repeat_interleave(to_device(lengths, device), output_size=count)
    return each.add_(torch.arange(count, dtype=torch.int32, device=device))


def _keys(store: CentreStore) -> tuple[int, int] | None:
    """The keys of the random bits by which units and moments are rounded now, 31 bits each; None: to nearest."""
    if store.draw is None:
        return None
    moment = mix_word(store.draw.seed & 0xFFFFFFFF) ^ mix_word((store.draw.step * 16 + store.draw.part) & 0xFFFFFFFF)
    return mix_word(moment) >> 1, mix_word(moment ^ 1) >> 1


def _operands(store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
    """Prepare a batch for the kernels -> x (N, D) in the type of the rows, own row (N,) int32 or -1."""
    own = torch.where(queries.owned, queries.row, -1).to(torch.int32)
    return queries.embeddings.to(store.unit.dtype).contiguous(), own


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
