"""Soft targets over sharded classes against dense float64 distributions: values, gradients of embeddings and rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import dense
from helpers.centre_cases import ADAMW, SCALE, SGD, assembled, method_of, moved_by, problem, sampled, store_of
from helpers.peaks import peak_of
from helpers.ranks import run
from helpers.soft_cases import (
    RECORDS,
    TEACHER_SCALE,
    WEIGHT,
    distributions,
    phase_of,
    soft_step,
    teacher_of,
    wanted_term,
)
from partialkd.centres import Centres, CentreStore
from partialkd.centres.logit_noise import NO_NOISE, LogitNoise
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.centres.soft_targets import SoftTargets
from partialkd.config import CentresConfig, OptimizerConfig
from partialkd.methods.terms import TermInputs, Terms
from partialkd.methods.terms.soft import soft_targets
from partialkd.world.world import World

pytestmark = pytest.mark.distributed
sizes = pytest.mark.parametrize("size", [1, 2, 3])
TERMS: dict[str, dict[str, Any]] = {
    "logit_kd": {"name": "logit_kd"},
    "cold": {"name": "logit_kd", "temperature": 0.2, "margin": 0.3},
    "margin_t": {"name": "margin_t", "margin": 0.4, "temperature": 2.0},
    "gkd": {"name": "gkd", "share": 0.8},
    "few": {"name": "gkd", "share": 0.99, "most": 2, "beta": 3.0},
}


def expected(
    method: str, term: dict[str, Any], p: dense.Problem, separate: bool, optimizer: OptimizerConfig,
    noise: LogitNoise | None = None,
):  # fmt: skip
    """-> loss, gradient of the student (N, D), centres after the optimiser step (C, D)."""
    centres = p.centres.clone()
    if method.startswith("ada"):
        centres, _ = dense.ada_centres(p, True, True, "code")
    w, x = centres.clone().requires_grad_(), p.student.clone().requires_grad_()
    v, f = teacher_of(p) if separate else (w.detach(), p.teacher)
    margins = (term.get("margin", 0.0), term.get("margin", 0.0) * (term["name"] == "margin_t"))
    z, t = distributions(p, x, w, f, v, (SCALE, term.get("teacher_scale", SCALE)), margins)
    if noise is not None:
        t = t * noise.factors(noise.keys(RECORDS[: len(t)], 0)[:, None], torch.arange(len(w))).double()
    loss = dense.cross_entropy(x, w, p, SCALE, moved_by(method, p)) + WEIGHT * wanted_term(term, p.labels, z, t)
    loss.backward()
    if method in ("arcface", "cosface"):
        rules = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
        more = {"momentum": 0.9} if optimizer.name == "sgd" else {}
        before = w.detach().clone()
        rules[optimizer.name]([w], optimizer.lr, weight_decay=optimizer.weight_decay, **more).step()
        if len(p.kept):
            w.data[~p.kept] = before[~p.kept]
    return loss.detach(), x.grad, w.detach()


def compare(
    name: str, method: str, p: dense.Problem, size: int, separate: bool, atol: float = 1e-10, **settings: Any
) -> None:
    term = TERMS[name] | ({"teacher_scale": TEACHER_SCALE} if separate else {})
    taught = teacher_of(p) if separate else None
    got = assembled(run(soft_step, size, method, term, p, taught, settings))
    want = expected(method, term, p, separate, settings.get("optimizer", SGD), settings.get("noise"))
    for ours, theirs in zip(got, want, strict=False):
        torch.testing.assert_close(ours.double(), theirs, atol=atol, rtol=atol * 100)


@sizes
@pytest.mark.parametrize("labels", ["random", "duplicates"])
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize(
    ("method", "separate"),
    [("arcface", True), ("arcdistill", False), ("ada_weighted", True), ("margindistillation", False)],
)
def test_terms_equal_the_dense_distributions(name: str, method: str, separate: bool, labels: str, size: int) -> None:
    compare(name, method, problem(labels), size, separate)


@sizes
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("name", ["cold", "margin_t", "gkd"])
def test_noise_on_the_teachers_logits(name: str, separate: bool, size: int) -> None:
    """The own class's too; over shards, chunks and micro-steps, and in the gradient of trained rows."""
    noise = LogitNoise(sigma=0.3, share=0.6, seed=5)
    assert 0 < (noise.keys(RECORDS[:8], 0) == NO_NOISE).sum() < 8
    method, more = ("arcface", {"splits": 2}) if separate else ("arcdistill", {})
    compare(name, method, problem("duplicates"), size, separate, noise=noise, chunk_rows=3, atol=2e-7, **more)


def test_the_noise_is_that_of_the_paper() -> None:
    """Independent and normal over images and over classes, for a share of the images; another one in each step."""
    noise = LogitNoise(sigma=0.5, share=0.25, seed=7)
    keys = noise.keys(torch.arange(4000), 3)
    assert (keys != NO_NOISE).double().mean().item() == pytest.approx(0.25, abs=0.03)
    factors = noise.factors(keys[:, None], torch.arange(200))
    assert torch.equal(factors[keys == NO_NOISE], torch.ones(int((keys == NO_NOISE).sum()), 200))
    z = (factors[keys != NO_NOISE] - 1) / 0.5
    assert z.abs().max() * 0.5 + 1 < noise.most
    assert (z.mean().item(), z.std().item()) == (pytest.approx(0, abs=0.01), pytest.approx(1, rel=0.01))
    assert z.pow(4).mean().item() == pytest.approx(3, rel=0.05)
    for rows in (z[:200, :].T, z[:, :200]):
        apart = torch.corrcoef(rows[:50]).fill_diagonal_(0)
        assert apart.abs().max() < 0.35
        assert apart.abs().mean() < 0.08
    assert not torch.equal(noise.keys(torch.arange(4000), 4), keys)
    assert not torch.equal(LogitNoise(0.5, 0.25, 8).keys(torch.arange(4000), 3), keys)


@sizes
@pytest.mark.parametrize(("method", "separate"), [("cosface", True), ("arcdistill", False)])
@pytest.mark.parametrize("name", TERMS)
def test_float32(name: str, method: str, separate: bool, size: int) -> None:
    compare(name, method, problem(), size, separate, atol=1e-5, dtype=torch.float32)


@sizes
@pytest.mark.parametrize("name", ["logit_kd", "few"])
@pytest.mark.parametrize(("method", "separate"), [("arcface", True), ("arcdistill", False)])
def test_both_distributions_are_over_the_same_sample(name: str, method: str, separate: bool, size: int) -> None:
    p = sampled(problem("duplicates", classes=40), 0.3)
    assert 0 < (~p.kept).sum() < 40
    compare(name, method, p, size, separate, sample_rate=0.3, chunk_rows=7)


@sizes
def test_a_sample_can_be_corrected_to_all_classes(size: int) -> None:
    """Then the own class has the probability, among those compared with, that it would have among all."""
    p = sampled(problem(classes=40), 0.3)
    term, others = TERMS["logit_kd"], (len(p.kept) - 1) / (int(p.kept.sum()) - 1)
    settings = {"sample_rate": 0.3, "importance_correction": True}
    got = assembled(run(soft_step, size, "arcdistill", term, p, None, settings))
    x = p.student.clone().requires_grad_()
    z, t = distributions(p, x, p.centres, p.teacher, p.centres, (SCALE, SCALE), (0.0, 0.0))
    own = torch.nn.functional.one_hot(p.labels, 40).bool()
    weight = torch.where(own, 1.0, torch.full_like(z, others)).log()
    kl = 0
    for i in range(len(z)):
        q, teacher = ((one[i] / 4 + weight[i]).log_softmax(0)[p.kept | own[i]] for one in (z, t))
        kl = kl + 16 * (teacher.exp() * (teacher - q)).sum() / len(z)
    hard = torch.where(own, SCALE * dense.arc(z / SCALE, 0.45), z + weight).logsumexp(1)
    loss = (hard - SCALE * dense.arc((z / SCALE)[own], 0.45)).mean() + WEIGHT * kl
    loss.backward()
    torch.testing.assert_close(got[0], loss.detach(), atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(got[1], x.grad, atol=1e-10, rtol=1e-8)


@sizes
@pytest.mark.parametrize("chunk_rows", [1, 3])
@pytest.mark.parametrize("name", ["margin_t", "gkd"])
def test_any_chunk_size_and_two_micro_steps(name: str, chunk_rows: int, size: int) -> None:
    """An accumulated step is that of the larger batch, under AdamW as well."""
    compare(name, "arcface", problem(), size, True, chunk_rows=chunk_rows, splits=2, optimizer=ADAMW)


@sizes
@pytest.mark.parametrize("name", ["logit_kd", "gkd"])
def test_fewer_classes_than_ranks(name: str, size: int) -> None:
    compare(name, "arcface", problem(classes=2), size, True)


@sizes
def test_one_class_alone_has_nothing_to_distil(size: int) -> None:
    for name in ("logit_kd", "gkd"):
        ranks = run(soft_step, size, "arcface", TERMS[name], problem(classes=1), teacher_of(problem(classes=1)), {})
        assert all(rank["values"][f"term_0_{name}"].abs() < 1e-12 for rank in ranks)
        assert all(gradient.isfinite().all() for rank in ranks for gradient in rank["gradient"])


@sizes
@pytest.mark.parametrize("splits", [1, 2])
def test_classes_without_a_centre_of_the_teacher_are_in_neither_distribution(splits: int, size: int) -> None:
    """The cross-entropy still compares with them: here alone their rows move."""
    p = problem(classes=12)
    unseen = torch.ones(12, dtype=torch.bool)
    unseen[p.labels], unseen[0] = False, False
    assert unseen.any()
    term = TERMS["gkd"] | {"teacher_scale": TEACHER_SCALE}
    got = assembled(run(soft_step, size, "arcface", term, p, teacher_of(p), {"unseen": unseen, "splits": splits}))
    w, x = p.centres.clone().requires_grad_(), p.student.clone().requires_grad_()
    v, f = teacher_of(p)
    z, t = distributions(p, x, w, f, v, (SCALE, TEACHER_SCALE), (0.0, 0.0))
    hidden = unseen.expand_as(z)
    wanted = wanted_term(term, p.labels, z.masked_fill(hidden, -torch.inf), t.masked_fill(hidden, -torch.inf))
    loss = dense.cross_entropy(x, w, p, SCALE, moved_by("arcface", p)) + WEIGHT * wanted
    loss.backward()
    torch.optim.SGD([w], SGD.lr, weight_decay=SGD.weight_decay).step()
    for ours, theirs in zip(got, (loss.detach(), x.grad, w.detach()), strict=False):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


@sizes
@pytest.mark.parametrize(("store", "off"), [("bf16", 0.01), ("int8", 0.02)])
def test_rounded_stores(store: str, off: float, size: int) -> None:
    p = problem()
    term, dtype = TERMS["logit_kd"], {"bf16": torch.bfloat16, "int8": torch.int8}[store]
    got = assembled(run(soft_step, size, "arcdistill", term, p, None, {"dtype": dtype}))
    loss, gradient, _ = expected("arcdistill", term, p, False, SGD)
    assert abs(got[0] - loss) < off * loss
    assert (got[1].double() - gradient).norm() < off * gradient.norm()


def test_a_term_that_is_not_used_moves_no_row() -> None:
    """Where a loss leaves the soft targets out, the rows move as they would without them."""
    p = problem()
    without, unused = (
        assembled(run(one_step_of_arcface, 2, p, soft)) for soft in (None, SoftTargets(4.0, SCALE, None))
    )
    for a, b in zip(without, unused, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def one_step_of_arcface(world: World, p: dense.Problem, soft: SoftTargets | None) -> dict[str, Any]:
    store, method = store_of(p, world, "trainable", torch.float64), method_of("arcface")
    centres = Centres(store, world, SCALE, CentresConfig(), 5, make_row_optimizer(store, SGD), soft=soft)
    mine = torch.arange(len(p.labels)).chunk(world.size)[world.rank]
    x = p.student[mine].clone().requires_grad_()
    centres.teach(p.teacher[mine])
    loss = method.loss(centres, x, p.labels[mine], None).loss
    loss.backward()
    centres.step(0.3)
    rows = centres.store.read(slice(None))
    return {"loss": loss.detach()[None], "gradient": [x.grad], "centres": rows, "seen": store.seen}


def test_memory_does_not_grow_with_the_number_of_classes() -> None:
    """Nor by a matrix of (N, C): that of the larger problem would take eight times what is allowed."""
    peaks = {classes: peak_of(step_over(classes)) for classes in (1 << 14, 1 << 16)}
    logits = 4 * 64 * (1 << 16)
    assert abs(peaks[1 << 16] - peaks[1 << 14]) < 1 << 16
    assert peaks[1 << 16] < logits / 8


def step_over(classes: int) -> Any:
    """A step of cosface and logit_kd over so many classes, with 64 samples and chunks of 512 rows."""
    g = torch.Generator().manual_seed(0)
    own, taught = (CentreStore.empty(range(classes), classes, 16, torch.float32, torch.device("cpu")) for _ in "ab")
    for store in (own, taught):
        store.fill(slice(None), torch.randn(classes, 16, generator=g))
    phase = phase_of("cosface", TERMS["logit_kd"], {"chunk_rows": 512})
    rows = make_row_optimizer(own, SGD)
    centres = Centres(own, World(), SCALE, phase.centres, 0, rows, soft=soft_targets(phase, taught))
    x, labels = torch.randn(64, 16, generator=g), torch.randint(classes, (64,), generator=g)
    method, terms = method_of("cosface"), Terms(phase.terms)

    def step() -> None:
        student = x.clone().requires_grad_()
        centres.teach(x)
        outcome = method.loss(centres, student, labels, None)
        terms.added_to(outcome, TermInputs(student, labels, x, World(), centres)).loss.backward()
        centres.step(0.1)

    step()
    return step
