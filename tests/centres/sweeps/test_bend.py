"""Bent negatives in every backend of the sweep: against float64, from a graph, and where another backend hands on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import kernel_cases
from helpers.kernel_cases import Case
from helpers.recording import Recording
from partialkd.centres import Centres, CentreStore
from partialkd.centres.row_optimizers import RowSGD
from partialkd.centres.sweeps.base import Bend, Queries, Sweep
from partialkd.centres.sweeps.bend import offset_with
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.fastest import FastestSweep
from partialkd.centres.sweeps.fused import FusedSweep
from partialkd.centres.sweeps.graphed import GraphedSweep
from partialkd.centres.sweeps.reference import ReferenceSweep
from partialkd.config import CentresConfig
from partialkd.errors import ConfigError
from partialkd.world.world import World

CPU = torch.device("cpu")
CASES = {
    "all rows": Case(rows=200),
    "duplicates": Case(labels="duplicates"),
    "sampled": Case(rows=200, filter="sampled"),
    "seen": Case(filter="seen"),
    "scale 16": Case(scale=16.0),
    "scale 128": Case(scale=128.0),
}


def bent(case: Case, seed: int, strength: float) -> tuple[CentreStore, Queries]:
    """Half of the negatives are hard for every second sample, none for every seventh."""
    store, queries = kernel_cases.build(case, CPU, seed)
    cosine = queries.embeddings @ store.directions(slice(None)).T
    threshold = torch.where(torch.arange(len(cosine)) % 2 == 0, cosine.median(1).values + 1e-4, 0.1)
    threshold[::7] = 1.0
    return store, replace(queries, bend=Bend(threshold, torch.tensor(strength)))


def dense(store: CentreStore, queries: Queries, scale: float) -> tuple[Tensor, Tensor]:
    """O and Z over their offset, term by term in float64."""
    assert queries.bend is not None
    x, u = queries.embeddings.double(), store.directions(slice(None)).double()
    t, offset = float(queries.bend.strength), float(offset_with(scale, queries.bend))
    cosine = x @ u.T
    hard = cosine > queries.bend.threshold.double()[:, None]
    logit = scale * torch.where(hard, cosine * (t + cosine), cosine)
    taken = queries.filter.keep(0, len(u)).repeat(len(x), 1)
    owned = queries.owned.nonzero().squeeze(1)
    taken[owned, queries.row[owned]] = False
    terms = (logit - offset).exp() * taken
    return (terms * torch.where(hard, t + 2 * cosine, 1.0)) @ u, terms.sum(1)


def near(got: Tensor, want: Tensor, allowed: float = 2e-5) -> None:
    assert (got.double() - want).norm() <= allowed * want.norm()


@pytest.mark.parametrize("kind", [ChunkedSweep, ReferenceSweep])
@pytest.mark.parametrize("strength", [-0.4, 0.0, 0.7])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sums_are_those_of_float64(case: Case, strength: float, kind: type[Sweep]) -> None:
    store, queries = bent(case, 3, strength)
    total, partition = kind(case.scale, 30).sums(store, queries)
    wanted = dense(store, queries, case.scale)
    near(total, wanted[0], 1e-4)
    near(partition, wanted[1], 1e-4)


def test_the_largest_and_the_least_fit_into_float32() -> None:
    """A cosine of 1 and t = 1: the logit is twice the scale."""
    u = torch.eye(4)[:3]
    store = CentreStore.empty(range(3), 3, 4, torch.float32, CPU)
    store.write(slice(None), u)
    _, plain = kernel_cases.build(Case(samples=2, rows=3, dim=4), CPU, 0)
    x = torch.stack([u[1], -u[1]])
    owned, row = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    queries = replace(plain, embeddings=x, owned=owned, row=row, bend=Bend(torch.tensor([0.5, 0.5]), torch.tensor(1.0)))
    for scale in (64.0, 200.0):
        total, partition = ChunkedSweep(scale).sums(store, queries)
        value = partition.log() + offset_with(scale, queries.bend)
        assert total.isfinite().all()
        torch.testing.assert_close(value[0], torch.tensor(2 * scale), rtol=1e-6, atol=0)


def test_a_replay_has_its_own_batchs_bend(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one graph is of batches with a bend, or of those without."""
    monkeypatch.setattr(GraphedSweep, "device", "cpu")
    recording = Recording()
    sweep, chunked = GraphedSweep(64.0, 30, capture=recording), ChunkedSweep(64.0, 30)
    store, _ = bent(Case(), 0, 0.0)
    for seed in range(3):
        _, queries = bent(Case(), seed, 0.2 * seed)
        for got, want in zip(sweep.sums(store, queries), chunked.sums(store, queries), strict=True):
            assert torch.equal(got, want)
    assert recording.captured == 1
    plain = replace(queries, bend=None)
    assert torch.equal(sweep.sums(store, plain)[1], chunked.sums(store, plain)[1])
    assert not torch.equal(sweep.sums(store, queries)[1], sweep.sums(store, plain)[1])


@pytest.mark.parametrize("kind", ["fused", "auto"])
def test_kernels_that_do_not_know_of_it_hand_on(kind: str) -> None:
    store, queries = bent(Case(), 3, 0.3)
    chunked, fused = ChunkedSweep(64.0, 30), FusedSweep(64.0, 30)
    sweep = fused if kind == "fused" else FastestSweep(chunked, {"fused": fused})
    assert not fused.sums_by_itself(store, queries)
    for got, want in zip(sweep.sums(store, queries), chunked.sums(store, queries), strict=True):
        assert torch.equal(got, want)
    moved = []
    for one in (sweep, chunked):
        own = replace(store, unit=store.unit.clone(), length=store.length.clone(), moments={})
        one.move(own, [(queries, torch.full((37,), 1e-20), torch.zeros(37))], RowSGD(store, 0.0, 0.0), 0.1)
        moved.append(own.unit)
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], store.unit)


class Unbending(ChunkedSweep):
    bends = False


def test_a_backend_that_does_not_know_of_it_is_refused() -> None:
    store = CentreStore.random(range(9), 9, 8, torch.float32, CPU, 0)
    centres = Centres(store, World(), 16.0, CentresConfig())
    centres.sweep = Unbending(16.0)
    bending: Any = lambda cosines: Bend(cosines, torch.tensor(0.0))
    with pytest.raises(ConfigError, match=r"centres\.backend: Unbending knows of no margin"):
        centres.contrast(torch.randn(3, 8), torch.tensor([1, 2, 3]), bending=bending)
