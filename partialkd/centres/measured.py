"""centres.backend = "auto" on CUDA: for each shape the faster of the chunked and the fused sweep, measured once.

The first time that a shape comes up, both work on the first TUNING_ROWS rows that the step compares with, with its
batch: once to compare what they make, then for the clock. Of two that agree the faster is used from then on and kept
in the file of partialkd.centres.tuning. A shape: sums or a kernel that moves rows, device, type of the rows, D, the
power of two that N falls into, all rows or a sample, in one piece (a window) or several, `chunk_rows`, versions of
torch and Triton.

They agree if no result is off by more than TOLERANCE of its norm: O and Z, or, after one step of copied rows without a
past, the moments, directions and lengths, and the way from the old centres to the new. Of the step at its own learning
rate the way may drown in bfloat16's rounding of the rows, so it is compared after another at TRIAL_LR; at that rate the
old centres drown in the way, and directions and lengths tell whether they were kept. If the sweeps do not agree, or any
of this fails, be it for want of memory, the chunked path is used for the rest of the run, a warning says so, and the
next run measures again; but what breaks the process's use of the device ends the run at what it asks next.
The chunked path is also used, and nothing is measured, with torch's deterministic algorithms, with fewer rows, and for
what has no kernel. The kernels are asked only where they multiply in the precision that `centres.products` asks of the
chunked path, so that a step may mix the two.

Every rank decides for itself. That is harmless: no collective is within, and what differs is the order of sums and
the random bits of rounding. For a moment measuring needs copies of TUNING_ROWS rows and their moments, two for each
sweep, and a few of the rows in float32. Never run on a GPU yet.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import accumulate
from typing import Literal, get_args

import torch
from torch import Tensor

from partialkd.centres.chunks import Queries
from partialkd.centres.contrast import LARGEST_SCALE, ChunkedSweep, RowGradient, Sweep
from partialkd.centres.fused import KERNEL_TYPES, TUNING_ROWS, FusedSweep, kernel_of, seconds_of, shape_of
from partialkd.centres.sampling import RowFilter
from partialkd.centres.store import TINY, CentreStore
from partialkd.centres.tuning import Tuner
from partialkd.centres.update import RowAdamW, RowOptimizer, RowSGD

Run = Callable[[], object]  # to be timed
Results = dict[str, Tensor]  # of one run, by name
Backend = Literal["chunked", "fused"]
BACKENDS = get_args(Backend)

# Relative, at scales up to 64; errors of a term grow with the scale. bfloat16: x is rounded before or after scaling.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
TRIAL_LR = 1e6  # a row's gradient may be a millionth of the row, which bfloat16 rounds by 2^-9 of itself


@dataclass(frozen=True)
class Trial:
    """Of one sweep on the first rows; neither changes anything else."""

    results: Callable[[], Results]
    run: Run


class MeasuredSweep(Sweep):
    """Either sweep, by shape."""

    def __init__(
        self,
        chunked: ChunkedSweep,
        fused: FusedSweep,
        tuner: Tuner | None = None,
        seconds: Callable[[Run], float] = seconds_of,
    ) -> None:
        """seconds(run): the time of one run."""
        self.sweeps: dict[Backend, ChunkedSweep] = {"chunked": chunked, "fused": fused}
        self.fused, self.seconds, self.tuner = fused, seconds, tuner or Tuner()
        self._chosen: dict[str, Backend] = {}

    def sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        """-> O (N, D), Z (N,) of this shard."""

        def prepare(sweep: ChunkedSweep) -> Trial:
            part, asked = first_rows(store, queries)
            run = partial(sweep.sums, part, asked)
            return Trial(lambda: dict(zip("OZ", run(), strict=True)), run)

        return self._faster("sums", store, queries, prepare).sums(store, queries)

    def row_gradients(
        self, store: CentreStore, batches: Sequence[tuple[Queries, Tensor, Tensor]]
    ) -> Iterator[RowGradient]:
        """As ChunkedSweep.row_gradients."""
        return self.sweeps["chunked"].row_gradients(store, batches)

    def move(
        self,
        store: CentreStore,
        batches: Sequence[tuple[Queries, Tensor, Tensor]],
        optimizer: RowOptimizer,
        lr: float,
    ) -> None:
        """Move trainable rows."""
        kernel = kernel_of(optimizer)
        sweep = self.sweeps["chunked"]
        if kernel and len(batches) == 1:
            queries, weight, target = batches[0]

            def prepare(sweep: ChunkedSweep) -> Trial:
                part, asked = first_rows(store, queries)
                near, rule = without_past(part), without_decay(optimizer)

                def move(rows: CentreStore, lr: float) -> None:
                    sweep.move(rows, [(asked, weight, target)], rule, lr)

                def results() -> Results:
                    move(near, lr)
                    move(far := without_past(part), TRIAL_LR)
                    way = far.read(slice(None)) - part.read(slice(None))
                    return {"unit": near.unit, "length": near.length, **near.moments, "way": way}

                return Trial(results, partial(move, near, lr))

            sweep = self._faster(kernel, store, queries, prepare)
        sweep.move(store, batches, optimizer, lr)

    def _faster(
        self, kernel: str, store: CentreStore, queries: Queries, prepare: Callable[[ChunkedSweep], Trial]
    ) -> ChunkedSweep:
        few = sum(len(run) for run in queries.filter.runs) < TUNING_ROWS
        if few or torch.are_deterministic_algorithms_enabled() or not self.fused.suits(store):
            return self.sweeps["chunked"]
        key = self._key(kernel, store, queries)
        if key not in self._chosen:
            kept = self.tuner.kept(key)
            self._chosen[key] = kept if kept in BACKENDS else self._measure(key, store, prepare)
        return self.sweeps[self._chosen[key]]

    def _measure(self, key: str, store: CentreStore, prepare: Callable[[ChunkedSweep], Trial]) -> Backend:
        allowed = TOLERANCE[store.unit.dtype] * max(1.0, self.fused.scale / LARGEST_SCALE)
        try:
            trials = {name: prepare(sweep) for name, sweep in self.sweeps.items()}
            problem = _problem(trials["fused"].results(), trials["chunked"].results(), allowed)
            times = {name: 0.0 if problem else self.seconds(trial.run) for name, trial in trials.items()}
        except Exception as error:  # of a compiler, a driver, a device: what goes on without kernels need not end
            problem = f"failed: {type(error).__name__}: {error}"
        if problem:
            warnings.warn(f"{key}: chunked is used, for fused {problem}", stacklevel=2)
            return "chunked"
        best: Backend = "fused" if times["fused"] < times["chunked"] else "chunked"
        self.tuner.keep(key, best)
        return best

    def _key(self, kernel: str, store: CentreStore, queries: Queries) -> str:
        pieces = "one piece" if len(queries.filter.runs) == 1 else "pieces"
        rows = "all rows" if queries.filter.sampled is None else f"a sample in {pieces}"
        chunk_rows = self.fused.chunk_rows or "any"
        shape = shape_of(kernel, store, len(queries.embeddings))
        return f"backend of {shape}, torch {torch.__version__}, {rows}, chunk_rows {chunk_rows}"


def make_measured(chunked: ChunkedSweep, rounded: bool) -> Sweep:
    """Either sweep, by shape; without Triton, `chunked`. `rounded`: whether that multiplies in bfloat16."""
    if find_spec("triton") is None:
        return chunked
    types = KERNEL_TYPES["bf16" if rounded else "fp32"]
    return MeasuredSweep(chunked, FusedSweep(chunked.scale, chunked.chunk_rows, chunked.products, types))


def first_rows(store: CentreStore, queries: Queries) -> tuple[CentreStore, Queries]:
    """The first TUNING_ROWS rows that the step compares with, seen or not, as a store and a batch of their own.

    They share the store's memory where they lie side by side; else they are a copy, as many pieces as they were.
    """
    runs, left = [], TUNING_ROWS
    for run in queries.filter.runs:
        runs.append(run[:left])
        left -= len(runs[-1])
    runs = [run for run in runs if run]
    device = store.device
    rows: slice | Tensor = slice(runs[0].start, runs[0].stop)
    if len(runs) > 1:
        rows = torch.cat([torch.arange(run.start, run.stop, device=device) for run in runs])
    count = sum(map(len, runs))
    part = replace(
        store,
        shard=range(count),
        unit=store.unit[rows],
        length=store.length[rows],
        seen=store.seen[rows],
        moments={name: value[rows] for name, value in store.moments.items()},
        ids=None,  # they tell random bits apart, and a trial draws none
        draw=None,
    )
    place = RowFilter(len(store.shard), queries.row[:0], runs).place(queries.row)
    owned = queries.owned & (place >= 0)
    row = torch.where(owned, place, 0)
    ends = list(accumulate(map(len, runs)))
    pieces = [range(stop - len(run), stop) for run, stop in zip(runs, ends, strict=True)]
    sampled = None if queries.filter.sampled is None else pieces
    return part, Queries(queries.embeddings, owned, row, RowFilter(count, place.where(owned, -1), sampled))


def without_past(store: CentreStore) -> CentreStore:
    """A copy whose moments are zero: after a step they are of its gradient alone."""
    moments = {name: torch.zeros_like(value) for name, value in store.moments.items()}
    return replace(store, unit=store.unit.clone(), length=store.length.clone(), moments=moments)


def without_decay(optimizer: RowOptimizer) -> RowOptimizer:
    """A copy; weight decay would hide a gradient that is wrong."""
    rule = copy.copy(optimizer)
    assert isinstance(rule, RowSGD | RowAdamW)
    rule.weight_decay = 0.0
    return rule


def _problem(got: Results, wanted: Results, allowed: float) -> str | None:
    """What speaks against these kernels."""
    errors = {name: _error(got[name].float(), value.float()) for name, value in wanted.items()}
    found = [f"{name} is off by {error:.1e}" for name, error in errors.items() if not error <= allowed]
    return f"{', '.join(found)} of its norm, allowed are {allowed:.0e}" if found else None


def _error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm().clamp_min(TINY))
