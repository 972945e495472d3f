"""Sweep with the fastest of several backends, measured once per shape: centres.backend = "auto" on CUDA.

The first time that a shape comes up, chunked and each of the others that have a way of their own for it work on the
first TUNING_ROWS rows that the step compares with, or on all if they are fewer, with its batch: once to compare what
they make, then for the clock. Of those that agree with chunked the fastest is used from then on and kept in the file of
the tuner (tuner.py). A shape: sums or the rule by which rows move, what can do it, device, type of the rows and of
products, D, the powers of two that N and, below TUNING_ROWS, the rows fall into, all rows or a sample, in one piece (a
window) or several, `chunk_rows`, versions of torch and Triton.

They agree if no result is off by more than TOLERANCE of its norm: O and Z, or, after one step of copied rows without a
past, the moments, directions and lengths, and the way from the old centres to the new. Of the step at its own learning
rate the way may drown in bfloat16's rounding of the rows, so it is compared after another at TRIAL_LR; at that rate the
old centres drown in the way, and directions and lengths tell whether they were kept. A sweep that does not agree, or
fails in any of this, be it for want of memory, is left out for the rest of the run, a warning says so, and the next run
measures again; but what breaks the process's use of the device ends the run at what it asks next.
The chunked path is also used, and nothing is measured, with torch's deterministic algorithms, with fewer than
LEAST_ROWS rows, and for what none of the others does by itself. The others must multiply in the precision that
`centres.products` asks of the chunked path, so that a step may mix them.

Every rank decides for itself. That is harmless: no collective is within, and what differs is the order of sums and
the random bits of rounding. For a moment measuring needs copies of TUNING_ROWS rows and their moments, two for each
sweep, and a few of the rows in float32; or a graph of the sums of so many.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from partialkd.centres.row_filter import RowFilter
from partialkd.centres.row_optimizers import RowOptimizer
from partialkd.centres.store import TINY, CentreStore
from partialkd.centres.sweeps.base import LARGEST_SCALE, MicroStep, Queries, RowGradient, Sweep
from partialkd.centres.sweeps.tuner import LEAST_ROWS, TUNING_ROWS, Tuner, seconds_on_gpu, shape_of
from partialkd.errors import PartialKDWarning

Run = Callable[[], object]  # to be timed
Results = dict[str, Tensor]  # of one run, by name

# Relative, at scales up to 64; errors of a term grow with the scale. bfloat16: x is rounded before or after scaling.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
TRIAL_LR = 1e6  # a row's gradient may be a millionth of the row, which bfloat16 rounds by 2^-9 of itself


@dataclass(frozen=True)
class Trial:
    """One sweep's work on the first rows; neither call changes anything else."""

    results: Callable[[], Results]
    run: Run


class FastestSweep(Sweep):
    """The fastest of several backends, by shape; for bent negatives chunked."""

    bends = True

    def __init__(
        self,
        chunked: Sweep,
        others: Mapping[str, Sweep],
        tuner: Tuner | None = None,
        seconds: Callable[[Run], float] = seconds_on_gpu,
    ) -> None:
        """Choose among chunked and others, by name, of its scale and precision. seconds(run): the time of one run."""
        super().__init__(chunked.scale, chunked.chunk_rows, chunked.products)
        self.chunked, self.others, self.seconds, self.tuner = chunked, others, seconds, tuner or Tuner()
        self._chosen: dict[str, str] = {}

    def sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        def prepare(sweep: Sweep) -> Trial:
            run = partial(sweep.trial_sums, *first_rows(store, queries))
            return Trial(lambda: dict(zip("OZ", run(), strict=True)), run)

        able = [name for name, sweep in self.others.items() if sweep.sums_by_itself(store, queries)]
        able = [] if queries.bend else able
        return self._fastest("sums", able, store, queries, prepare).sums(store, queries)

    def row_gradients(self, store: CentreStore, batches: Sequence[MicroStep]) -> Iterator[RowGradient]:
        return self.chunked.row_gradients(store, batches)

    def move(self, store: CentreStore, batches: Sequence[MicroStep], optimizer: RowOptimizer, lr: float) -> None:
        """Move a single micro-step by the fastest backend, several by chunked."""
        sweep, able = self.chunked, list[str]()
        if len(batches) == 1 and batches[0][0].bend is None:
            able = [name for name, other in self.others.items() if other.moves_by_itself(store, optimizer)]
        if able:
            queries, weight, target = batches[0]

            def prepare(sweep: Sweep) -> Trial:
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

            sweep = self._fastest(optimizer.rule, able, store, queries, prepare)
        sweep.move(store, batches, optimizer, lr)

    def _fastest(
        self, work: str, able: Sequence[str], store: CentreStore, queries: Queries, prepare: Callable[[Sweep], Trial]
    ) -> Sweep:
        if _sampled(queries) < LEAST_ROWS or torch.are_deterministic_algorithms_enabled() or not able:
            return self.chunked
        key = self._key(work, able, store, queries)
        if key not in self._chosen:
            kept = self.tuner.kept(key)
            self._chosen[key] = kept if kept in ("chunked", *able) else self._measure(key, able, store, prepare)
        return self.others.get(self._chosen[key], self.chunked)

    def _measure(self, key: str, able: Sequence[str], store: CentreStore, prepare: Callable[[Sweep], Trial]) -> str:
        times: dict[str, float] = {}
        problems = {name: self._compare(name, store, prepare, times) for name in able}
        for name in able:
            self.others[name].forget()
        for name, problem in problems.items():
            if problem:
                warnings.warn(f"{key}: {name} is not used: {problem}", PartialKDWarning, stacklevel=2)
        best = min(times, key=lambda name: times[name], default="chunked")
        if not any(problems.values()):
            self.tuner.keep(key, best)
        return best

    def _compare(
        self, name: str, store: CentreStore, prepare: Callable[[Sweep], Trial], times: dict[str, float]
    ) -> str | None:
        """Reason not to use this one; None: `times` has its time and that of chunked."""
        rounded = store.unit.dtype == torch.bfloat16 or self.chunked.products.copied
        allowed = TOLERANCE[torch.bfloat16 if rounded else torch.float32] * max(1.0, self.scale / LARGEST_SCALE)
        try:
            usual, other = prepare(self.chunked), prepare(self.others[name])
            problem = _problem(other.results(), usual.results(), allowed)
            if not problem:
                times.update({"chunked": self.seconds(usual.run), name: self.seconds(other.run)})
        except Exception as error:  # of a compiler, a driver, a device: what goes on without it need not end
            return f"failed: {type(error).__name__}: {error}"
        return problem

    def _key(self, work: str, able: Sequence[str], store: CentreStore, queries: Queries) -> str:
        pieces = "one piece" if len(queries.filter.runs) == 1 else "pieces"
        rows = "all rows" if queries.filter.sampled is None else f"a sample in {pieces}"
        few = sampled if (sampled := _sampled(queries)) < TUNING_ROWS else None
        chunk_rows = self.chunked.chunk_rows or "any"
        products = "rounded" if self.chunked.products.copied else "exact"
        versions = [self.others[name].version() for name in able]
        shape = ", ".join([shape_of(work, store, len(queries.embeddings), few), *filter(None, versions)])
        return (
            f"backend of {shape}, torch {torch.__version__}, {rows}, chunk_rows {chunk_rows}, "
            f"products {products}, chunked or {' or '.join(able)}"
        )


def _sampled(queries: Queries) -> int:
    """Count the rows that the step compares with, but for those of the batch's classes that were not sampled."""
    return sum(len(run) for run in queries.filter.runs)


def first_rows(store: CentreStore, queries: Queries) -> tuple[CentreStore, Queries]:
    """Take the first TUNING_ROWS rows that the step compares with, seen or not, as a store and a batch of their own.

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
    """Copy the store with moments of zero: after a step they are of its gradient alone."""
    moments = {name: torch.zeros_like(value) for name, value in store.moments.items()}
    return replace(store, unit=store.unit.clone(), length=store.length.clone(), moments=moments)


def without_decay(optimizer: RowOptimizer) -> RowOptimizer:
    """Copy the optimiser without weight decay, which would hide a gradient that is wrong."""
    rule = copy.copy(optimizer)
    rule.weight_decay = 0.0
    return rule


def _problem(got: Results, wanted: Results, allowed: float) -> str | None:
    """Reason not to believe these results; None: there is none."""
    errors = {name: _error(got[name].float(), value.float()) for name, value in wanted.items()}
    found = [f"{name} is off by {error:.1e}" for name, error in errors.items() if not error <= allowed]
    return f"{', '.join(found)} of its norm, allowed are {allowed:.0e}" if found else None


def _error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm().clamp_min(TINY))
