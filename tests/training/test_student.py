"""Student against a plain torch loop: ZeRO stages, ranks, accumulation, precision, clipping, BatchNorm, networks.

The reference is torch alone, in this process, on the whole global batch; the students are gloo ranks.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any
from unittest.mock import patch

import pytest
import torch

from helpers.ranks import run
from helpers.student_cases import (
    ADAMW,
    SGD,
    STAGES,
    Case,
    Net,
    Outcome,
    advance,
    assert_close,
    make_phase,
    make_student,
    reference,
)
from partialkd.config import ModelConfig
from partialkd.errors import ConfigError
from partialkd.models import build_model
from partialkd.training.student import Student
from partialkd.world.world import World


def train(world: World, cases: list[Case]) -> list[Outcome]:
    outcomes = []
    for case in cases:
        student = make_student(case, world)
        assert student.grad_norm is None
        outcome = advance(student, case, world, 0, case.steps)
        outcome.network = student.network().state_dict()
        outcomes.append(outcome)
        student.close()
    return outcomes


def printed(world: World) -> str:
    """What reaches stdout and stderr, below Python too, while a student is made and trained."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 1)
        os.dup2(caught.fileno(), 2)
        try:
            train(world, [Case(stage, steps=1) for stage in STAGES])
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            for number, copy in enumerate(kept, start=1):
                os.dup2(copy, number)
                os.close(copy)
        caught.seek(0)
        return caught.read().decode()


@pytest.mark.distributed
def test_deepspeed_is_quiet() -> None:  # the first test here: warnings are shown once a process
    assert run(printed, 2) == ["", ""]


# ------------------------------------------------------------------------------------------- stages and ranks


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2])
def test_every_stage_equals_plain_torch(size: int) -> None:
    """Clipping bites, accumulation is divided once, ranks are averaged once: else nothing here would agree."""
    cases = [
        Case(stage, optimizer, accumulation)
        for stage in STAGES
        for optimizer in (SGD, ADAMW)
        for accumulation in ((1, 3) if optimizer is SGD else (2,))
    ]
    references = {optimizer["name"]: reference(Case(optimizer=optimizer)) for optimizer in (SGD, ADAMW)}
    assert min(references["sgd"].norms) > SGD["clip_norm"]
    results = run(train, size, cases)
    for outcomes in results:
        for case, got in zip(cases, outcomes, strict=True):
            assert_close(got, references[case.optimizer["name"]])


@pytest.mark.slow
@pytest.mark.distributed
def test_variants_equal_plain_torch() -> None:
    """Warm-up from the first step on; no clipping; SGD without momentum; a channels_last network."""
    warm = {"name": "poly", "power": 1.0, "warmup_steps": 2}  # 20 steps in all
    lrs = [0.05 * factor for factor in (1 / 3, 2 / 3, 1.0, 17 / 18)]
    plain = SGD | {"clip_norm": 0.0, "momentum": 0.0}
    cases = [Case(stage, schedule=warm) for stage in (0, 3)]
    cases += [Case(stage, plain, channels_last=True) for stage in STAGES]
    references = [reference(Case(), lrs)] * 2 + [reference(Case(optimizer=plain))] * 4
    for got, expected in zip(run(train, 2, cases)[0], references, strict=True):
        assert_close(got, expected)


def train_in_small_buckets(world: World, cases: list[Case]) -> list[Outcome]:
    with patch("partialkd.training.student.BUCKET", 100):
        return train(world, cases)


@pytest.mark.slow
@pytest.mark.distributed
def test_gradients_in_several_buckets() -> None:
    """Also a parameter larger than a bucket, as the last layer of a real network can be."""
    cases = [Case(stage, accumulation=accumulation) for stage in (1, 2, 3) for accumulation in (1, 2)]
    for got in run(train_in_small_buckets, 2, cases)[0]:
        assert_close(got, reference(Case()))


@pytest.mark.slow
@pytest.mark.distributed
def test_bfloat16_stays_near_float32() -> None:
    """Losses within 2 %, and every parameter's movement within 5 % of float32's; the same at every stage."""
    exact = reference(Case())
    start = Net().state_dict()
    cases = [Case(stage, phase={"freeze_batchnorm": True, "precision": "bf16"}) for stage in STAGES]
    outcomes = run(train, 2, cases)[0]
    for got in outcomes:
        assert got.losses != exact.losses  # it did run in bfloat16
        torch.testing.assert_close(got.losses, exact.losses, rtol=0.02, atol=0)
        for name, value in exact.network.items():
            assert got.network[name].dtype == value.dtype
            moved = (value - start[name]).float().norm()
            assert (got.network[name] - value).float().norm() <= 0.05 * moved, name
        assert_close(got, outcomes[0], rtol=2e-3, atol=2e-4)


# ------------------------------------------------------------------------------------------------- BatchNorm


@pytest.mark.slow
@pytest.mark.distributed
def test_synchronised_batchnorm_equals_the_whole_batch() -> None:
    cases = [Case(stage, phase={"sync_batchnorm": True}) for stage in STAGES]
    expected = reference(Case(phase={}))
    for outcomes in run(train, 2, cases):
        for got in outcomes:
            assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 3])
def test_batchnorm_is_per_rank_and_averaged_in_the_network(stage: int) -> None:
    case = Case(stage, phase={})
    ours = run(buffers_then_network, 2, case)
    first, second = (rank["buffers"] for rank in ours)
    assert not torch.equal(first["buffer.bn.running_mean"], second["buffer.bn.running_mean"])
    for name in ("bn.running_mean", "bn.running_var", "features.running_var"):
        mean = (first[f"buffer.{name}"] + second[f"buffer.{name}"]) / 2
        for rank in ours:
            torch.testing.assert_close(rank["network"][name], mean)
    for rank in ours:
        assert rank["network"]["bn.num_batches_tracked"] == 3
        assert rank["kinds"] == [type(module) for module in Net().modules()]
        assert not any(rank["training"])
        assert not any(rank["sharded"])
        assert rank["resumed"] == rank["uninterrupted"]


def buffers_then_network(world: World, case: Case) -> dict[str, Any]:
    student = make_student(case, world)
    advance(student, case, world, 0, 3)
    buffers, network = student.local_state(), student.network()
    resumed = advance(student, case, world, 3, 5).losses
    return {
        "buffers": buffers,
        "network": network.state_dict(),
        "kinds": [type(module) for module in network.modules()],
        "training": [module.training for module in network.modules()],
        "sharded": [hasattr(parameter, "ds_id") for parameter in network.parameters()],
        "resumed": resumed,
        "uninterrupted": advance(make_student(case, world), case, world, 0, 5).losses[3:],
    }


def frozen(world: World) -> dict[str, Any]:
    case = Case(3)
    student = make_student(case, world)
    before = student.local_state()
    advance(student, case, world, 0, 2)
    return {"before": before, "after": student.local_state(), "network": student.network().state_dict()}


@pytest.mark.distributed
def test_frozen_batchnorm_keeps_its_statistics_and_trains_its_scale() -> None:
    got = run(frozen, 2)[0]
    start = Net().state_dict()
    for name, value in got["before"].items():
        assert torch.equal(got["after"][name], value)
        assert torch.equal(got["network"][name.removeprefix("buffer.")], value)
    assert not torch.equal(got["network"]["bn.weight"], start["bn.weight"])
    assert torch.equal(got["network"]["features.weight"], start["features.weight"])  # requires_grad False


# ------------------------------------------------------------------------------------- real networks, schedule


def real_networks(world: World) -> list[tuple[float, float | None]]:
    """Losses of two steps for each network, at stages 0 and 3: blocks recomputed, parameters used directly."""
    losses: list[tuple[float, float | None]] = []
    for name in ("iresnet18", "vit_tiny"):
        for stage in (0, 3):
            torch.manual_seed(0)
            config = ModelConfig(
                name=name, embedding_dim=16, width=0.125 if name != "vit_tiny" else 0.25, depth=0.5,
                activation_checkpointing=True, channels_last=name == "iresnet18",
            )  # fmt: skip
            student = Student(build_model(config, 32), make_phase(Case(stage)), world, micro_steps=20)
            images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(world.rank))
            for _ in range(2):
                embeddings = student.embed(images)
                student.backward(embeddings, embeddings.detach() / len(images))
                student.step()
            losses.append((float(world.mean(student.embed(images).square().mean())), student.grad_norm))
            with torch.no_grad():
                assert student.network()(images).shape == (4, 16)
            student.close()
    return losses


@pytest.mark.slow
@pytest.mark.distributed
def test_networks_with_recomputed_blocks_train_at_stage_3() -> None:
    losses = run(real_networks, 2)[0]
    for replicated, sharded in zip(losses[::2], losses[1::2], strict=True):
        assert sharded == pytest.approx(replicated, rel=1e-4)


def first_rates(world: World) -> list[Any]:
    case = Case(1, schedule={"name": "step", "milestone_steps": (3,), "factor": 0.1, "warmup_steps": 1})
    student = make_student(case, world)
    seen: list[Any] = [student.total_steps]
    for step in range(4):
        seen += [student.steps, student.lr]
        advance(student, case, world, step, step + 1)
        seen.append(student.optimizer.param_groups[0]["lr"])
    return seen


@pytest.mark.distributed
def test_rate_is_set_before_each_step() -> None:
    expected: list[float] = [20]
    for step, lr in enumerate((0.025, 0.05, 0.05, 0.005)):
        expected += [step, lr, lr]
    assert run(first_rates, 1)[0] == pytest.approx(expected)


def group_of_deepspeed(world: World) -> bool:
    """Whether DeepSpeed's collectives end when the configured timeout says so: they use the world's own group."""
    student = make_student(Case(1), world)
    return student.engine.data_parallel_group is world.group


@pytest.mark.distributed
def test_the_timeout_holds_for_deepspeed_too() -> None:
    assert run(group_of_deepspeed, 2) == [True, True]


# ------------------------------------------------------------------------------------------------------ errors


def not_finite(world: World, stage: int) -> str | None:
    case = Case(stage)
    student = make_student(case, world)
    advance(student, case, world, 0, 1)
    embeddings = student.embed(torch.ones(2, 3, 8, 8))
    student.backward(embeddings, torch.full_like(embeddings, float("nan" if world.rank else "1")))
    try:
        student.step()
    except FloatingPointError as error:
        return str(error)
    return f"norm {student.grad_norm}"


@pytest.mark.distributed
def test_a_gradient_that_is_not_finite_is_seen_on_every_rank() -> None:
    assert run(not_finite, 2, 0) == ["norm nan"] * 2
    for stage in (1, 2, 3):
        assert run(not_finite, 2, stage) == ["the gradient of optimiser step 1 is not finite"] * 2


def test_contradicting_settings_name_their_key() -> None:
    phase = make_phase(Case(phase={"freeze_batchnorm": True, "sync_batchnorm": True}))
    with pytest.raises(ConfigError, match=r"alone\.sync_batchnorm: must be false with alone\.freeze_batchnorm"):
        Student(Net(), phase, World(), 10, key="alone")
