"""The centre engine against a dense float64 reference at world sizes 1, 2, 3: values, gradients, centre updates."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from helpers import dense
from helpers.centre_cases import (
    ADAMW,
    METHODS,
    SCALE,
    SGD,
    assembled,
    compare,
    expected,
    method_of,
    one_step,
    problem,
    sampled,
    store_of,
)
from helpers.ranks import RankFailure, run
from partialkd.centres import Centres, CentreStore, row_filter
from partialkd.centres.gathered import OwnRows
from partialkd.centres.moving_average import move_ema
from partialkd.config import CentresConfig, OptimizerConfig
from partialkd.world.world import World

pytestmark = pytest.mark.distributed
sizes = pytest.mark.parametrize("size", [1, 2, 3])


@pytest.mark.slow
@sizes
@pytest.mark.parametrize("labels", ["random", "duplicates", "last"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_equals_the_dense_reference(name: str, labels: str, size: int) -> None:
    compare(name, problem(labels), size)


@sizes
@pytest.mark.parametrize("name", ["arcface", "arcdistill", "ada_weighted"])
def test_float32_store(name: str, size: int) -> None:
    compare(name, problem(), size, atol=2e-6, dtype=torch.float32)


@sizes
@pytest.mark.parametrize("name", ["arcdistill", "ada_weighted", "arcface"])
def test_bfloat16_store(name: str, size: int) -> None:
    """Rounding the unit rows to eight bits is a relative error of 2^-9 a number; all else stays in float32."""
    p = problem()
    results = run(one_step, size, name, p, {"dtype": torch.bfloat16})
    loss, gradient, centres, _ = assembled(results)
    want = expected(name, p, SCALE, SGD)
    assert results[0]["dtype"] == torch.bfloat16
    torch.testing.assert_close(loss.double(), want[0], atol=0.03, rtol=0.01)
    for got, wanted in ((gradient, want[1]), (centres, want[2])):
        assert (got.double() - wanted).norm() < 0.01 * wanted.norm()
        assert not torch.equal(got.double(), wanted)


@sizes
@pytest.mark.parametrize("name", ["cosface", "margindistillation", "ada"])
def test_fewer_classes_than_ranks(name: str, size: int) -> None:
    compare(name, problem(classes=2), size)


@sizes
@pytest.mark.parametrize("name", ["arcface", "arcdistill", "ada_weighted"])
@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_sampled_rows(name: str, backend: str, size: int) -> None:
    compare(name, sampled(problem(classes=40), 0.3), size, sample_rate=0.3, chunk_rows=7, backend=backend)


@sizes
def test_sampled_rows_under_adamw(size: int) -> None:
    compare("cosface", sampled(problem(classes=40), 0.3), size, sample_rate=0.3, optimizer=ADAMW)


@sizes
@pytest.mark.parametrize("name", ["arcface", "cosface", "arcdistill", "cosdistill"])
def test_accumulation_for_every_margin(name: str, size: int) -> None:
    """Two micro-steps are the larger batch. AdaDistill's centres move at each, MarginDistillation refuses them."""
    compare(name, problem(), size, splits=2)


@sizes
def test_sampling_really_leaves_classes_out(size: int) -> None:
    p = sampled(problem(classes=40), 0.3)
    assert 0 < (~p.kept).sum() < 40
    centres = assembled(run(one_step, size, "arcface", p, {"sample_rate": 0.3}))[2]
    torch.testing.assert_close(centres[~p.kept], p.centres[~p.kept])
    assert (centres[p.kept] - p.centres[p.kept]).abs().amax(1).min() > 0


@sizes
@pytest.mark.parametrize("name", ["arcface", "margindistillation", "ada_weighted"])
@pytest.mark.parametrize("chunk_rows", [1, 3, 1000])
def test_any_chunk_size(name: str, chunk_rows: int, size: int) -> None:
    compare(name, problem(), size, chunk_rows=chunk_rows)


@sizes
@pytest.mark.parametrize("name", ["arcface", "ada_weighted", "cosdistill"])
def test_reference_backend(name: str, size: int) -> None:
    compare(name, problem(), size, backend="reference")


@sizes
@pytest.mark.parametrize("scale", [30.0, 64.0, 128.0])
@pytest.mark.parametrize("name", ["arcface", "ada_weighted"])
def test_scales(name: str, scale: float, size: int) -> None:
    compare(name, problem(), size, scale=scale, atol=1e-8)


@sizes
@pytest.mark.parametrize("name", ["arcface", "cosface"])
@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_trainable_centres_over_several_steps(name: str, optimizer: OptimizerConfig, size: int) -> None:
    compare(name, problem(), size, optimizer=optimizer, steps=4)


@sizes
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_accumulated_step_equals_the_larger_batch(rate: float, size: int) -> None:
    p = problem(classes=40)
    p = sampled(p, rate) if rate < 1 else p
    if rate < 1:  # each micro-step compares with its own positives only: the reference is a sum of two problems
        whole = run(one_step, 1, "arcface", p, {"sample_rate": rate, "splits": 2})
        parts = run(
            one_step, size, "arcface", p, {"sample_rate": rate, "splits": 2, "chunk_rows": 5, "backend": "chunked"}
        )
        reference = run(one_step, 1, "arcface", p, {"sample_rate": rate, "splits": 2, "backend": "reference"})
        for got in (parts, reference):
            for a, b in zip(assembled(got)[2:3], assembled(whole)[2:3], strict=True):
                torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)
    else:
        compare("arcface", p, size, splits=2)


@sizes
@pytest.mark.parametrize("name", ["ada", "ada_weighted", "ada_published"])
def test_classes_not_seen_yet(name: str, size: int) -> None:
    p = problem("duplicates")
    p.seen[:] = False
    p.seen[0] = True
    compare(name, p, size)


@sizes
def test_unseen_classes_are_no_negatives_when_excluded(size: int) -> None:
    p = problem()
    p.seen[::3] = False
    kept = p.seen.clone()
    kept[p.labels] = True
    compare(
        "ada_weighted", dense.Problem(p.centres, p.student, p.teacher, p.labels, p.seen, kept), size, skip_unseen=True
    )


@pytest.mark.parametrize("name", ["arcface", "ada_weighted", "margindistillation"])
def test_order_of_samples_does_not_matter(name: str) -> None:
    p = problem("duplicates")
    order = torch.randperm(len(p.labels), generator=torch.Generator().manual_seed(1))
    q = dense.Problem(p.centres, p.student[order], p.teacher[order], p.labels[order], p.seen)
    a, b = assembled(run(one_step, 2, name, p, {})), assembled(run(one_step, 3, name, q, {}))
    torch.testing.assert_close(a[0], b[0])
    torch.testing.assert_close(a[1][order], b[1])
    torch.testing.assert_close(a[2], b[2])


def test_margins_are_reported() -> None:
    p = problem()
    results = run(one_step, 2, "margindistillation", p, {})
    margins = dense.margin_distillation_margins(p, 0.2, 0.5)
    torch.testing.assert_close(torch.stack([r["values"]["margin"] for r in results]).mean(), margins.mean())
    assert 0.2 <= margins.min() < margins.max() <= 0.5


def test_alpha_is_reported() -> None:
    p = problem()
    results = run(one_step, 2, "ada_weighted", p, {})
    _, alphas = dense.ada_centres(p, weighted=True, first_sight=True, clip="code")
    got = torch.stack([r["values"]["alpha"] for r in results]).mean()
    torch.testing.assert_close(got, alphas.mean())
    assert 0 < got < 1


def _bad_label(world: World, label: Any) -> None:
    p = problem()
    labels = p.labels.clone()[:3]
    if world.rank == 1:
        labels = labels.to(torch.int32) if label == "int32" else labels.index_fill(0, torch.tensor([2]), label)
    store = store_of(p, world, "fixed", torch.float32)
    Centres(store, world, SCALE, CentresConfig()).contrast(p.student[:3], labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "said"),
    [
        (10, r"rank 1, sample 2: label must be in \[0, 10\), got 10"),
        (-1, "got -1"),
        ("int32", "rank 1: labels must be int64"),
    ],
)
def test_bad_label_names_rank_sample_and_label(label: Any, said: str) -> None:
    with pytest.raises(RankFailure, match=said):
        run(_bad_label, 2, label)


@pytest.mark.parametrize("seen", [False, True])
def test_samples_that_are_not_finite_move_no_average(seen: bool) -> None:
    """Neither their class's, of which the others' mean remains, nor what is known to be seen."""
    store = CentreStore.empty(range(3), 3, 4, torch.float32, torch.device("cpu"))
    if seen:
        store.fill(slice(None), torch.eye(4)[:3])
    before = store.read(slice(None)).clone()
    teacher = torch.nn.functional.normalize(torch.tensor([[0, 1.0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]]))
    student, rows = teacher.roll(1, 1), torch.tensor([0, 0, 2])
    teacher[1:] = torch.nan
    alone = copy.deepcopy(store)
    for kept, count in ((store, 3), (alone, 1)):
        own = OwnRows(kept, student[:count], teacher[:count], torch.ones(count, dtype=torch.bool), rows[:count])
        move_ema(own, weighted=False, first_sight=True, renormalise=False)
    assert torch.equal(store.read(slice(None)), alone.read(slice(None)))
    assert not torch.equal(store.read(slice(0, 1)), before[:1])
    assert torch.equal(store.read(slice(1, 3)), before[1:])
    assert store.seen.tolist() == [True, seen, seen]


def test_a_teacher_that_is_not_finite_spoils_one_margin() -> None:
    p, method = problem(), method_of("margindistillation")
    centres = Centres(store_of(p, World(), "fixed", torch.float64), World(), SCALE, CentresConfig())
    p.teacher[3] = torch.nan
    values = method.loss(centres, p.student.requires_grad_(), p.labels, p.teacher)
    certainty = (torch.nn.functional.normalize(p.teacher) * p.centres[p.labels]).sum(1)
    assert values.loss.isnan()  # by that sample
    assert method.margins(centres, certainty).isnan().nonzero().squeeze(1).tolist() == [3]


@pytest.mark.slow
@sizes
@pytest.mark.parametrize("name", ["arcface", "ada_weighted"])
def test_lists_with_gaps_as_on_cuda(name: str, size: int) -> None:
    """Where the number of the batch's own classes is not asked for."""
    p = sampled(problem("duplicates", classes=40), 0.3)
    results = [run(one_step_with, size, gaps, name, p, {"sample_rate": 0.3, "chunk_rows": 3}) for gaps in (False, True)]
    for a, b in zip(*map(assembled, results), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def one_step_with(world: World, gaps: bool, name: str, p: dense.Problem, settings: dict[str, Any]) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        if gaps:
            patch.setattr(row_filter, "without_gaps", lambda rows, valid: (rows, valid))
        return one_step(world, name, p, settings)
