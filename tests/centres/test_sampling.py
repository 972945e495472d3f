"""Sampled rows: coverage, uniformity, what the choice depends on, the batch's own classes, the correction."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import dense
from helpers.centre_cases import fill_seen
from helpers.ranks import run
from partialkd.centres import Centres, CentreStore
from partialkd.centres.row_filter import RowFilter
from partialkd.centres.sampling import Sampling, block_rows
from partialkd.centres.sweeps.chunks import chunks, side_by_side
from partialkd.centres.sweeps.products import Products
from partialkd.config import CentresConfig
from partialkd.world.shard import shard_of
from partialkd.world.world import World

NOBODY = torch.empty(0, dtype=torch.int64)
CASES = [(40, 0.3), (1000, 0.1), (10_007, 0.37), (200_000, 0.1), (3, 0.5), (1, 0.1), (100_000, 0.004)]


def taken(sampling: Sampling, step: int, shard: range | None = None) -> Tensor:
    """(R,) bool."""
    shard = range(sampling.num_classes) if shard is None else shard
    mask = torch.zeros(len(shard), dtype=torch.bool)
    for rows in sampling.runs(shard, step):
        assert not mask[rows.start : rows.stop].any()
        mask[rows.start : rows.stop] = True
    return mask


@pytest.mark.parametrize(("classes", "rate"), CASES)
def test_every_class_is_a_negative_equally_often_in_every_cycle(classes: int, rate: float) -> None:
    sampling = Sampling(classes, rate, seed=3)
    m, cycle = sampling.fraction.numerator, sampling.fraction.denominator
    assert m / cycle == pytest.approx(rate, rel=0.02)
    for first in (0, 5 * cycle):
        counts = sum(taken(sampling, first + turn).long() for turn in range(cycle))
        assert torch.equal(counts, torch.full((classes,), m))


@pytest.mark.parametrize(("classes", "rate"), CASES)
@pytest.mark.parametrize("size", [2, 3, 7])
def test_shards_take_what_one_rank_would(classes: int, rate: float, size: int) -> None:
    sampling = Sampling(classes, rate, seed=1)
    for step in (0, 1, 12_345):
        parts = [taken(sampling, step, shard_of(classes, rank, size)) for rank in range(size)]
        assert torch.equal(torch.cat(parts), taken(sampling, step))


def test_every_rank_takes_its_share_at_every_step() -> None:
    sampling = Sampling(1_000_000, 0.1, seed=0)
    for step in range(20):
        rows = [sum(map(len, sampling.runs(shard_of(1_000_000, rank, 8), step))) for rank in range(8)]
        assert sum(rows) == pytest.approx(100_000, rel=0.02)
        assert all(abs(count - 12_500) <= 2 * sampling.block for count in rows)


def test_runs_are_few_ascending_and_apart() -> None:
    sampling = Sampling(1_000_000, 0.1, seed=0)
    runs = sampling.runs(range(1_000_000), 7)
    assert len(runs) <= 65
    assert all(one.stop < other.start for one, other in pairwise(runs))
    assert [block_rows(c, 0.1) for c in (5, 40, 1000, 10_000, 200_000, 10**6, 10**9)] == [
        1,
        1,
        12,
        125,
        312,
        1562,
        4096,
    ]


def test_the_choice_depends_on_seed_and_step_alone() -> None:
    first = taken(Sampling(10_000, 0.1, seed=9), 4)
    assert torch.equal(first, taken(Sampling(10_000, 0.1, seed=9), 4))
    others = [taken(Sampling(10_000, 0.1, seed=8), 4), taken(Sampling(10_000, 0.1, seed=9), 14)]
    assert not any(torch.equal(first, other) for other in others)
    assert not (first & taken(Sampling(10_000, 0.1, seed=9), 5)).any()  # the same cycle


def test_steps_of_different_cycles_are_independent() -> None:
    """Two classes meet in a step as often as two independent draws would, whichever turns are compared."""
    sampling = Sampling(4000, 0.25, seed=2)  # blocks of 125 in groups of 4
    apart = torch.arange(0, 4000, 125)
    draws = torch.stack([taken(sampling, 4 * cycle + cycle % 4)[apart] for cycle in range(600)]).double()
    assert draws.mean(0).sub(0.25).abs().max() < 5 * (0.25 * 0.75 / 600) ** 0.5
    groups = draws.T.reshape(8, 4, 600)
    both = torch.einsum("iat,jbt->ijab", groups, groups) / 600
    other_groups = both[~torch.eye(8, dtype=torch.bool)]
    assert other_groups.sub(1 / 16).abs().max() < 5.5 * (1 / 16 * 15 / 16 / 600) ** 0.5


def store_of(centres: Tensor, shard: range, seen: Tensor | None = None) -> CentreStore:
    """seen (C,) bool: only these may be negatives; None: all have been seen."""
    device, rows = torch.device("cpu"), slice(shard.start, shard.stop)
    store = CentreStore.empty(shard, len(centres), centres.shape[1], torch.float64, device, seen is not None)
    fill_seen(store, centres[rows], torch.ones(len(shard), dtype=torch.bool) if seen is None else seen[rows])
    return store


def test_sampled_rows_are_used_where_they_lie_and_the_batchs_own_once() -> None:
    store = store_of(torch.randn(400, 4, dtype=torch.float64), range(400))
    sampling = Sampling(400, 0.1, seed=0)
    runs = sampling.runs(range(400), 3)
    inside, outside = runs[0].start, next(row for row in range(400) if not any(row in rows for rows in runs))
    kept = RowFilter(400, torch.tensor([outside, inside, -1, outside]), runs)
    found = list(chunks(store, [kept], 3, Products()))
    listed = [chunk for chunk in found if chunk.kept is not None]
    slices = [piece for chunk in found[: -len(listed)] for piece in chunk.pieces]
    own = torch.cat([chunk.pieces[0].rows[chunk.kept] for chunk in listed])
    assert [len(chunk) for chunk in listed] == [1]
    assert all(isinstance(piece.rows, slice) for piece in slices)
    assert all(piece.unit.data_ptr() == store.unit[piece.rows].data_ptr() for piece in slices)
    assert own.tolist() == [outside]
    rows = torch.cat([*(torch.arange(400)[piece.rows] for piece in slices), own])
    assert torch.equal(rows.sort().values, kept.keep(0, 400).nonzero().squeeze(1))
    assert kept.counts().tolist() == [400, len(rows)]


def test_a_chunk_takes_as_many_rows_as_it_has_room_for() -> None:
    runs = [range(2, 5), range(10, 11), range(20, 31), range(40, 42)]
    found = [[(rows.start, rows.stop) for rows in slices] for slices in side_by_side(runs, 6)]
    assert found == [[(2, 5), (10, 11), (20, 22)], [(22, 28)], [(28, 31), (40, 42)]]
    assert list(side_by_side([], 6)) == []


def test_samples_find_their_classes_among_rows_that_lie_apart() -> None:
    runs = [range(2, 5), range(10, 11), range(20, 31)]
    in_order = [row for run in runs for row in run]
    rows = torch.arange(33)
    kept = RowFilter(33, rows, runs)
    assert kept.place(rows).tolist() == [in_order.index(row) if row in in_order else -1 for row in range(33)]
    assert torch.equal(RowFilter(33, rows).place(rows), rows)
    assert kept.place(NOBODY).tolist() == []
    assert RowFilter(33, rows, []).place(rows[:2]).tolist() == [-1, -1]


def test_unseen_rows_are_left_out_but_for_the_batchs_own() -> None:
    seen = torch.tensor([True, False, False, True])
    kept = RowFilter(4, torch.tensor([2]), seen=seen)
    assert kept.keep(0, 4).tolist() == [True, False, True, True]
    assert kept.counts().tolist() == [3, 3]
    kept = RowFilter(4, torch.tensor([2]), [range(1)], seen)
    assert kept.keep(0, 4).tolist() == [True, False, True, False]
    assert kept.counts().tolist() == [3, 2]
    assert not RowFilter(4, NOBODY, seen=seen).everything


def contrasts(world: World, p: dense.Problem, settings: dict[str, Any], unseen: bool = False) -> tuple[Tensor, Tensor]:
    """-> negative log-sum-exp (b,), its gradient (b, D)."""
    store = store_of(p.centres, shard_of(len(p.centres), world.rank, world.size), p.seen if unseen else None)
    centres = Centres(store, world, 16.0, CentresConfig(**settings), seed=5)
    mine = torch.arange(len(p.labels)).chunk(world.size)[world.rank]
    x = p.student[mine].requires_grad_()
    negative = centres.contrast(x, p.labels[mine]).negative
    (gradient,) = torch.autograd.grad(negative.sum(), x)
    return negative.detach(), gradient


@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_correction_is_the_exact_share_of_the_other_classes(backend: str, unseen: bool, size: int) -> None:
    p = dense.make_problem(40, 12, 8)
    p.seen[::5] = not unseen
    settings = {"sample_rate": 0.3, "backend": backend}
    plain = run(contrasts, size, p, settings, unseen)
    scaled = run(contrasts, size, p, {**settings, "importance_correction": True}, unseen)
    own = torch.nn.functional.one_hot(p.labels, 40).sum(0).bool()
    able = p.seen | own
    used = (taken(Sampling(40, 0.3, 5), 0) & p.seen) | own
    wanted = torch.log((able.sum() - 1.0) / (used.sum() - 1.0))
    for (before, slope), (after, same) in zip(plain, scaled, strict=True):
        torch.testing.assert_close(after - before, wanted.double().expand(len(after)), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(slope, same)


@pytest.mark.slow
def test_corrected_sum_is_unbiased() -> None:
    """Mean over steps and batches of Z of one fixed sample, the other samples' classes drawn anew."""
    p = dense.make_problem(600, 1, 8, seed=1)
    x, own = p.student, p.labels[0]
    cosine = dense.unit(x) @ dense.unit(p.centres).T
    exact = (4 * cosine).exp().squeeze(0).index_fill(0, own, 0).sum()
    config = CentresConfig(sample_rate=0.1, importance_correction=True)
    centres = Centres(store_of(p.centres, range(600)), World(), 4.0, config, seed=1)
    others = torch.Generator().manual_seed(0)
    found = []
    for _ in range(400):
        labels = torch.cat([p.labels, torch.randint(600, (15,), generator=others)])
        student = torch.cat([x, p.centres[labels[1:]]])
        found.append(centres.contrast(student, labels).negative[0].exp())
        centres.step(0.1)
    sums = torch.stack(found) / exact
    error = sums.std() / len(sums) ** 0.5
    assert 0 < error < 0.03
    assert abs(sums.mean() - 1) < 4 * error
