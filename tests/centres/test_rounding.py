"""Stores of few bits: random bits, unbiased rounding, steps that add up, and what does not change with the ranks."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import dense
from helpers.centre_cases import SCALE, SEED, assembled, method_of, problem, store_of
from helpers.ranks import run
from partialkd.centres import Centres, CentreStore
from partialkd.centres.rounding import Draw, to_bfloat16, to_int8
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.centres.store import DTYPES
from partialkd.config import CentresConfig, OptimizerConfig
from partialkd.config.load import parse_config
from partialkd.counter_random import hash_words, mix_word
from partialkd.errors import ConfigError
from partialkd.world.world import World

CPU = torch.device("cpu")
ALL = slice(None)
NARROW = ("bf16", "int8")
sizes = pytest.mark.parametrize("size", [1, 2, 3])


# -------------------------------------------------------------------------------------------------- random bits


def test_words_are_the_stated_arithmetic_in_32_bits() -> None:
    draw, ids = Draw(seed=7, step=3, part=2), torch.tensor([0, 5, 2**33 + 1])
    words = draw.words(ids, 4, purpose=1)
    key = mix_word(mix_word((7 + 0x51ED270B) & 0xFFFFFFFF) ^ mix_word(2 * 16 + 1 + 1))
    for i, row in enumerate(hash_words(ids, key, 3).tolist()):
        for j in range(4):
            x = ((row | 1) * (mix_word(j + 1) | 1)) & 0xFFFFFFFF
            x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
            assert int(words[i, j]) & 0xFFFFFFFF == x


def test_words_are_uniform_over_steps_classes_and_columns_and_no_two_uses_share_them() -> None:
    ids = torch.arange(64)
    words = torch.stack([Draw(1, step).words(ids, 32) for step in range(128)])
    uniform = ((words >> 8) & 0xFFFFFF).double() / 2**24
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.003)
    for axis in ((0, 1), (0, 2), (1, 2), (0,), (1,)):
        count = uniform.numel() / uniform.mean(axis).numel()
        assert (uniform.mean(axis) - 0.5).abs().max() < 6 * 0.29 / count**0.5, axis
    rows = (uniform - 0.5).flatten(0, 1)
    assert (rows.T @ rows / len(rows) * 12 - torch.eye(32)).abs().max() < 0.08  # columns are not correlated
    others = (Draw(2, 0), Draw(1, 0, part=1))
    variants = [words[0], *(draw.words(ids, 32) for draw in others), Draw(1, 0).words(ids, 32, purpose=1)]
    for i, one in enumerate(variants):
        for other in variants[:i]:
            assert (one == other).float().mean() < 0.01


# ----------------------------------------------------------------------------------------------------- rounding


def test_bfloat16_is_one_of_the_two_neighbours_and_the_value_on_average() -> None:
    torch.manual_seed(0)
    values = torch.randn(8, 16) * torch.logspace(-20, 4, 16)
    words = Draw(3, 0).words(torch.arange(8 * 4000), 16)
    rounded = to_bfloat16(values.repeat(4000, 1), words).view(4000, 8, 16)
    spacing = 2.0 ** (values.abs().log2().floor() - 7)
    error = (rounded.double() - values.double()) / spacing
    assert error.abs().max() < 1
    assert error.mean(0).abs().max() < 5 * 0.5 / 4000**0.5  # five standard deviations of the largest possible
    exact = values.to(torch.bfloat16)
    assert torch.equal(to_bfloat16(exact.float(), Draw(3, 0).words(torch.arange(8), 16)), exact)


def test_bfloat16_keeps_what_is_not_finite() -> None:
    odd = torch.tensor([[float("nan"), float("inf"), -float("inf"), 0.0, -0.0]])
    odd = torch.cat([odd, torch.tensor([[0x7FFFFFFF, -1, 0x7F800001, 0, 0]], dtype=torch.int32).view(torch.float32)])
    for step in range(50):
        got = to_bfloat16(odd, Draw(0, step).words(torch.arange(2), 5)).float()
        torch.testing.assert_close(got, odd, equal_nan=True, rtol=0, atol=0)


def test_int8_is_within_a_quantum_and_the_value_on_average() -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 64) * torch.tensor([1e-6, 0.01, 1.0, 7.0, 1e6, 0.0])[:, None]
    quantum = rows.abs().amax(1, keepdim=True) / 127
    q, inverse, length = to_int8(rows.repeat(4000, 1), Draw(3, 0).words(torch.arange(6 * 4000), 64))
    got = (q.double() * (inverse * length)[:, None]).view(4000, 6, 64)
    norms = (q.float() * inverse[:, None]).norm(dim=1).view(4000, 6)
    torch.testing.assert_close(norms[:, :5], torch.ones(4000, 5), rtol=0, atol=1e-6)
    assert ((got - rows).abs() <= quantum * (1 + 1e-4)).all()
    error = (got.mean(0) - rows) / quantum.clamp_min(1e-30)
    assert error[:5].abs().max() < 5 * 0.5 / 4000**0.5
    assert got[:, 5].abs().max() == 0
    q, inverse, length = to_int8(rows)
    assert ((q.double() * (inverse * length)[:, None] - rows).abs() <= quantum * 0.5001).all()


@pytest.mark.parametrize("name", NARROW)
def test_long_writes_are_as_short_ones_and_random_bits_follow_the_class(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.randn(50, 16)
    whole, part = (CentreStore.empty(shard, 50, 16, DTYPES[name], CPU) for shard in (range(50), range(20, 50)))
    with whole.rounding(Draw(1, 2)):
        whole.write(ALL, rows)
    monkeypatch.setattr("partialkd.centres.store.ROUNDED_AT_ONCE", 7 * 16)
    with part.rounding(Draw(1, 2)):
        part.write(torch.arange(29, -1, -1), rows[20:].flip(0))
    for key, value in part.tensors().items():
        assert torch.equal(value, whole.tensors()[key][20:])
    nearest = CentreStore.empty(range(50), 50, 16, DTYPES[name], CPU)
    nearest.write(ALL, rows)
    assert not torch.equal(nearest.unit, whole.unit)
    assert whole.draw is None


# Relative error of the centre after 300 steps of 1e-4 each, 3 % of the way: a spacing's worth of noise at most.
ERRORS = {"bf16": 0.015, "int8": 0.035}


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
def test_small_steps_add_up_and_are_lost_by_rounding_to_nearest(name: str) -> None:
    torch.manual_seed(0)
    start = F.normalize(torch.randn(20, 512))
    towards = F.normalize(torch.randn(20, 512))

    def moved(store_name: str, stochastic: bool) -> Tensor:
        store = CentreStore.empty(range(20), 20, 512, DTYPES[store_name], CPU)
        store.write(ALL, start)
        for step in range(300):
            centre = store.read(ALL)
            with store.rounding(Draw(1, step)) if stochastic else nullcontext():
                store.write(ALL, centre + 1e-4 * (towards - centre))
        return store.read(ALL)

    exact, drawn, nearest = moved("fp32", False), moved(name, True), moved(name, False)
    way = lambda x: (((x - start) * (exact - start)).sum() / (exact - start).square().sum()).item()
    assert way(drawn) == pytest.approx(1, abs=0.05)
    assert way(nearest) < 0.8
    assert (nearest - exact).norm() > (drawn - exact).norm()
    assert (drawn - exact).norm() < ERRORS[name] * exact.norm()


# ------------------------------------------------------------------------------------------------ many ranks


def steps_of(world: World, name: str, p: dense.Problem, settings: dict[str, Any]) -> dict[str, Any]:
    """Optimiser steps of `splits` micro-steps on the same batch, after a resume at `resumed` if it is given."""
    settings = dict(settings)
    dtype, splits = DTYPES[settings.pop("store")], settings.pop("splits", 1)
    steps, resumed = settings.pop("steps"), settings.pop("resumed", None)
    optimizer = settings.pop("optimizer", OptimizerConfig(lr=0.05, momentum=0.9))
    method, config = method_of(name), CentresConfig(**settings)

    def made() -> Centres:
        store = store_of(p, world, method.config.centre_kind, dtype)
        rows = make_row_optimizer(store, optimizer, config) if method.config.centre_kind == "trainable" else None
        return Centres(store, world, SCALE, config, SEED, rows)

    centres = made()
    losses: list[Tensor] = []
    gradients: list[Tensor | None] = []
    for step in range(steps):
        if step == resumed:
            saved = copy.deepcopy(centres.state())
            centres = made()
            centres.load_state(saved)
        losses, gradients = [], []
        for part in torch.arange(len(p.labels)).chunk(splits):
            mine = part.chunk(world.size)[world.rank]
            x = p.student[mine].float().requires_grad_()
            outcome = method.loss(centres, x, p.labels[mine], p.teacher[mine].float())
            outcome.loss.backward()
            losses.append(outcome.loss.detach())
            gradients.append(x.grad)
        centres.step(optimizer.lr)
    store = centres.store
    return {
        "loss": torch.stack(losses), "gradient": gradients, "centres": store.read(ALL), "seen": store.seen,
        "state": {key: value.clone() for key, value in store.state().items()},
    }  # fmt: skip


def state_of(results: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {key: torch.cat([r["state"][key] for r in results]) for key in results[0]["state"]}


@pytest.mark.distributed
@sizes
@pytest.mark.parametrize("name", ["arcdistill", "ada_weighted"])
def test_int8_against_the_dense_reference(name: str, size: int) -> None:
    """A number of a row is off by half a quantum, max |row| / 254; moved ones by up to a whole one. D = 8, C = 10."""
    p = problem("duplicates")
    centres = dense.ada_centres(p, True, True, "code")[0] if name.startswith("ada") else p.centres
    x = p.student.clone().requires_grad_()
    wanted = dense.cross_entropy(x, centres, p, SCALE, lambda c: dense.arc(c, 0.45))
    wanted.backward()
    loss, gradient, got, seen = assembled(run(steps_of, size, name, p, {"store": "int8", "steps": 1}))
    quantum = centres.abs().amax(1, keepdim=True) / 127
    assert ((got.double() - centres).abs() <= quantum * 1.6).all()
    assert not torch.equal(got.double(), centres)
    torch.testing.assert_close(loss.double(), wanted.detach(), atol=0.05, rtol=0.01)
    assert (gradient.double() - x.grad).norm() < 0.03 * x.grad.norm()
    assert torch.equal(seen, p.seen)


@pytest.mark.distributed
@pytest.mark.parametrize("store", NARROW)
def test_moving_averages_are_bit_for_bit_the_same_on_any_ranks_and_after_a_resume(store: str) -> None:
    p = problem("duplicates", classes=11)
    settings = {"store": store, "steps": 5, "splits": 2}
    one = state_of(run(steps_of, 1, "ada_weighted", p, settings))
    assert "scale" in one or store == "bf16"
    for size, more in ((2, {}), (3, {}), (3, {"resumed": 3}), (2, {"chunk_rows": 3})):
        other = state_of(run(steps_of, size, "ada_weighted", p, {**settings, **more}))
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]), (size, more, key)


@pytest.mark.distributed
@sizes
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_moments_in_bfloat16_stay_close_to_float32(optimizer: Literal["sgd", "adamw"], size: int) -> None:
    """Each number of a moment is off by 2^-8 of itself and right on average; so is the way of a centre, nearly."""
    p = problem(classes=11)
    rule = OptimizerConfig(name=optimizer, lr=0.02, momentum=0.9, weight_decay=0.01)
    settings = {"store": "fp32", "steps": 6, "optimizer": rule}
    exact, narrow = (
        run(steps_of, size, "cosface", p, {**settings, "moments": moments}) for moments in ("fp32", "bf16")
    )
    way = assembled(exact)[2].double() - p.centres
    assert (assembled(narrow)[2].double() - p.centres - way).norm() < 0.01 * way.norm()
    moments = state_of(narrow)
    kinds = {key: value.dtype for key, value in moments.items() if key.startswith("moment.") and value.dim() == 2}
    assert set(kinds.values()) == {torch.bfloat16}
    for key in kinds:
        other = state_of(exact)[key]
        assert (moments[key].double() - other.double()).norm() < 0.02 * other.norm(), key


def dense_row_adamw(p: dense.Problem, rule: OptimizerConfig, steps: int) -> Tensor:
    """AdamW whose second moment is the mean square of a row's gradient, in float64."""
    (beta1, beta2), w = rule.betas, p.centres.clone().requires_grad_()
    first, second = torch.zeros_like(w), torch.zeros(len(w), 1, dtype=w.dtype)
    for step in range(1, steps + 1):
        loss = dense.cross_entropy(p.student, w, p, SCALE, lambda c: c - 0.35)
        (gradient,) = torch.autograd.grad(loss, w)
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient.pow(2).mean(1, keepdim=True)
        step_size = (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt() + rule.eps)
        w = (w.detach() * (1 - rule.lr * rule.weight_decay) - rule.lr * step_size).requires_grad_()
    return w.detach()


@pytest.mark.distributed
@sizes
@pytest.mark.parametrize("chunk_rows", [3, None])
def test_adamw_with_one_second_moment_a_row_equals_the_dense_reference(chunk_rows: int | None, size: int) -> None:
    p = problem(classes=11)
    rule = OptimizerConfig(name="adamw", lr=0.05, weight_decay=0.1)
    settings = {"store": "fp32", "steps": 4, "optimizer": rule, "second_moment": "row", "chunk_rows": chunk_rows}
    results = run(steps_of, size, "cosface", p, settings)
    torch.testing.assert_close(assembled(results)[2].double(), dense_row_adamw(p, rule, 4), atol=1e-5, rtol=1e-4)
    assert state_of(results)["moment.second"].shape == (11,)


# ----------------------------------------------------------------------------------- states and configuration


@pytest.mark.parametrize("saved", DTYPES)
@pytest.mark.parametrize("loaded", DTYPES)
def test_every_store_loads_every_other(saved: str, loaded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partialkd.centres.store.ROUNDED_AT_ONCE", 16 * 9)
    store, other = (
        CentreStore.random(range(3, 43), 50, 16, DTYPES[name], CPU, seed) for seed, name in enumerate((saved, loaded))
    )
    store.length.mul_(torch.linspace(0.5, 90, 40))
    store.fill(torch.tensor([3]), torch.randn(1, 16))
    other.load_state(store.state())
    before, after = store.read(ALL), other.read(ALL)
    off = {"fp32": 1e-6, "bf16": 2**-8, "int8": 0.5 / 127}[loaded] * before.abs().amax(1, keepdim=True)
    assert ((after - before).abs() <= off * 1.01).all()
    assert torch.equal(other.seen, store.seen)
    if saved == loaded:
        assert all(torch.equal(value, other.state()[key]) for key, value in store.state().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_moments_take_the_precision_of_the_run_that_goes_on(dtype: torch.dtype) -> None:
    rule = OptimizerConfig(momentum=0.9)
    store = CentreStore.random(range(5), 5, 8, torch.float32, CPU, 0)
    make_row_optimizer(store, rule, CentresConfig(moments="bf16" if dtype == torch.bfloat16 else "fp32"))
    state = {**store.state(), "moment.momentum": torch.randn(5, 8)}
    store.load_state(state)
    assert store.moments["momentum"].dtype == dtype
    torch.testing.assert_close(store.moments["momentum"].float(), state["moment.momentum"], rtol=2**-8, atol=0)


def test_int8_is_refused_for_centres_that_are_trained() -> None:
    tree = {
        "run": {"name": "t"}, "data": {"path": "x"}, "teacher": {"source": "onnx", "path": "t", "embedding_dim": 8},
        "student": {
            "model": {"name": "iresnet18", "embedding_dim": 8}, "method": {"name": "arcface"},
            "epochs": 1, "global_batch": 1, "centres": {"store": "int8"},
        },
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r'centres.store: must be "fp32" or "bf16" with arcface, .* got "int8"'):
        parse_config(tree)
    tree["student"]["method"] = {"name": "adadistill"}  # type: ignore[index]
    assert parse_config(tree).student.centres.store == "int8"
