"""The centre engine against a dense float64 reference at world sizes 1, 2, 3: values, gradients, centre updates."""

from __future__ import annotations

import copy
from typing import Any

import dense
import pytest
import torch
from ranks import RankFailure, run
from torch import Tensor

from partialkd.centres import Centres, CentreStore, sampling
from partialkd.centres.gathered import OwnRows
from partialkd.centres.moving_average import move_ema
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.centres.sampling import Sampling
from partialkd.config import CentresConfig, OptimizerConfig
from partialkd.config.load import parse_config
from partialkd.methods import make_method
from partialkd.world.shard import shard_of
from partialkd.world.world import World

SEED = 5
SCALE = 16.0
SGD = OptimizerConfig(lr=0.3, momentum=0.9, weight_decay=0.01)
ADAMW = OptimizerConfig(name="adamw", lr=0.05, weight_decay=0.1)

METHODS: dict[str, dict[str, Any]] = {
    "arcface": {"name": "arcface", "margin": {"m2": 0.5}},
    "combined": {"name": "arcface", "margin": {"m1": 1.1, "m2": 0.3, "m3": 0.2}},
    "straight": {"name": "arcface", "margin": {"m2": 0.5, "gradient": "straight_through"}},
    "cosface": {"name": "cosface", "margin": 0.35},
    "arcdistill": {"name": "arcdistill", "margin": 0.45},
    "cosdistill": {"name": "cosdistill", "margin": 0.35},
    "ada": {"name": "adadistill", "weighted": False},
    "ada_weighted": {"name": "adadistill"},
    "ada_cos": {"name": "adadistill", "kind": "cos", "margin": 0.35},
    "ada_published": {"name": "adadistill", "first_sight": False},
    "margindistillation": {"name": "margindistillation"},
}


def method_of(name: str, scale: float = SCALE) -> Any:
    tree = {
        "run": {"name": "t"}, "data": {"path": "x"}, "teacher": {"source": "onnx", "path": "t", "embedding_dim": 8},
        "student": {
            "model": {"name": "iresnet18", "embedding_dim": 8}, "method": {**METHODS[name], "scale": scale},
            "epochs": 1, "global_batch": 1,
        },
    }  # fmt: skip
    return make_method(parse_config(tree).student.method)


def store_of(p: dense.Problem, world: World, kind: str, dtype: torch.dtype, skip_unseen: bool = False) -> CentreStore:
    shard = shard_of(len(p.centres), world.rank, world.size)
    store = CentreStore.empty(shard, len(p.centres), p.centres.shape[1], dtype, torch.device("cpu"))
    rows = slice(shard.start, shard.stop)
    store.write(slice(None), p.centres[rows].to(store.length.dtype))
    store.seen[:] = p.seen[rows]
    store.skip_unseen = skip_unseen
    return store


def one_step(world: World, name: str, p: dense.Problem, settings: dict[str, Any]) -> dict[str, Any]:
    """One optimiser step of `name` on this rank's part of the batch; 'splits' micro-steps."""
    settings = dict(settings)
    method = method_of(name, settings.pop("scale", SCALE))
    optimizer, splits = settings.pop("optimizer", SGD), settings.pop("splits", 1)
    steps, dtype = settings.pop("steps", 1), settings.pop("dtype", torch.float64)
    store = store_of(p, world, method.kind, dtype, settings.pop("skip_unseen", False))
    row_optimizer = make_row_optimizer(store, optimizer) if method.kind == "trainable" else None
    centres = Centres(store, world, method.scale, CentresConfig(**settings), SEED, row_optimizer)
    gradients, losses, values = [], [], {}
    for _ in range(steps):
        gradients, losses = [], []
        for part in torch.arange(len(p.labels)).chunk(splits):
            mine = part.chunk(world.size)[world.rank]
            x = p.student[mine].to(store.length.dtype).requires_grad_()
            outcome = method.loss(centres, x, p.labels[mine], p.teacher[mine])
            outcome.loss.backward()
            gradients.append(x.grad)
            losses.append(outcome.loss.detach())
            values = outcome.values
        centres.step(optimizer.lr)
    store = centres.store
    return {
        "loss": torch.stack(losses), "gradient": gradients, "centres": store.read(slice(None)), "seen": store.seen,
        "values": values, "dtype": store.unit.dtype,
    }  # fmt: skip


def assembled(results: list[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> loss (), gradient of the global mean (N, D), centres (C, D), seen (C,)."""
    loss = torch.stack([r["loss"] for r in results]).mean()
    splits = len(results[0]["gradient"])
    gradient = torch.cat([r["gradient"][k] for k in range(splits) for r in results]) / (len(results) * splits)
    return loss, gradient, torch.cat([r["centres"] for r in results]), torch.cat([r["seen"] for r in results])


def moved_by(name: str, p: dense.Problem):
    settings = METHODS[name]
    margin = settings.get("margin", 0.45)
    if name == "margindistillation":
        return lambda c: dense.arc(c, dense.margin_distillation_margins(p, 0.2, 0.5))
    if isinstance(margin, dict):
        m1, m2, m3 = margin.get("m1", 1.0), margin["m2"], margin.get("m3", 0.0)
        moved = lambda c: dense.falling(m1 * c.clamp(dense.EDGE - 1, 1 - dense.EDGE).acos() + m2) - m3
        return (lambda c: c + (moved(c) - c).detach()) if name == "straight" else moved
    return (lambda c: c - margin) if "cos" in name else (lambda c: dense.arc(c, margin))


def expected(name: str, p: dense.Problem, scale: float, optimizer: OptimizerConfig, steps: int = 1):
    """-> loss, gradient of the student (N, D), centres after the optimiser step (C, D)."""
    centres, seen = p.centres.clone(), p.seen.clone()
    if name.startswith("ada"):
        centres, _ = dense.ada_centres(p, METHODS[name].get("weighted", True), METHODS[name].get("first_sight", True))
        seen[p.labels] = True
    w = centres.clone().requires_grad_()
    trainable = METHODS[name]["name"] in ("arcface", "cosface")
    rule = {
        "sgd": lambda: torch.optim.SGD([w], optimizer.lr, momentum=0.9, weight_decay=optimizer.weight_decay),
        "adamw": lambda: torch.optim.AdamW([w], optimizer.lr, weight_decay=optimizer.weight_decay),
    }[optimizer.name]()
    x = p.student.clone().requires_grad_()
    for _ in range(steps):
        x.grad = None
        rule.zero_grad()
        loss = dense.cross_entropy(x, w, p, scale, moved_by(name, p))
        loss.backward()
        if trainable:
            used = p.kept if len(p.kept) else torch.ones(len(w), dtype=torch.bool)
            used = used | torch.nn.functional.one_hot(p.labels, len(w)).sum(0).bool()
            before = w.detach().clone()
            rule.step()
            w.data[~used] = before[~used]  # rows not used do not move
    return loss.detach(), x.grad, w.detach(), seen


def compare(name: str, p: dense.Problem, size: int, atol: float = 1e-10, **settings: Any) -> None:
    results = run(one_step, size, name, p, settings)
    loss, gradient, centres, seen = assembled(results)
    want = expected(name, p, settings.get("scale", SCALE), settings.get("optimizer", SGD), settings.get("steps", 1))
    close = lambda got, wanted: torch.testing.assert_close(got.double(), wanted, atol=atol, rtol=atol * 100)
    close(loss, want[0])
    close(gradient, want[1])
    close(centres, want[2])
    assert torch.equal(seen, want[3])


def problem(labels: str = "random", classes: int = 10, samples: int = 12, seed: int = 0) -> dense.Problem:
    return dense.make_problem(classes, samples, 8, labels, seed)


def sampled(p: dense.Problem, rate: float) -> dense.Problem:
    """The classes that the sampling keeps as negatives at step 0."""
    kept = torch.zeros(len(p.centres), dtype=torch.bool)
    for run_of_rows in Sampling(len(p.centres), rate, SEED).runs(range(len(p.centres)), step=0):
        kept[run_of_rows.start : run_of_rows.stop] = True
    kept[p.labels] = True
    return dense.Problem(p.centres, p.student, p.teacher, p.labels, p.seen, kept)


pytestmark = pytest.mark.distributed
sizes = pytest.mark.parametrize("size", [1, 2, 3])


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
    _, alphas = dense.ada_centres(p, weighted=True, first_sight=True)
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
        store.write(slice(None), torch.eye(4)[:3])
        store.seen[:] = True
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
            patch.setattr(sampling, "without_gaps", lambda rows, valid: (rows, valid))
        return one_step(world, name, p, settings)
