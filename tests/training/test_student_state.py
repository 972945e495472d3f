"""Student's state: exact continuation at every ZeRO stage, loading at another stage and world size, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.ranks import run
from helpers.student_cases import ADAMW, SGD, STAGES, Case, Net, Outcome, advance, assert_close, make_student, reference
from partialkd.errors import CheckpointError
from partialkd.training.zero_values import FullValues
from partialkd.world.world import World

Saved = tuple[dict[str, Tensor], dict[str, Tensor]]


def continued(world: World, cases: list[Case]) -> list[dict[str, Any]]:
    """Three steps, save, two more; and the same two from the saved state in a student that started elsewhere."""
    results = []
    for case in cases:
        first = make_student(case, world)
        advance(first, case, world, 0, 3)
        saved = from_main(world, first.state()), first.local_state()
        straight = advance(first, case, world, 3, 5)
        second = make_student(case, world, Net(seed=99))
        advance(second, case, world, 7, 8 if case.steps > 4 else 7)  # sometimes after steps of its own
        second.load_state(*saved)
        again = from_main(world, second.state()), second.local_state()
        resumed = advance(second, case, world, 3, 5)
        resumed.extra = {"steps": second.steps, "saved": saved, "again": again}
        results.append({"straight": straight, "resumed": resumed, "final": (ending(first), ending(second))})
        first.close()
        second.close()
    return results


def from_main(world: World, full: dict[str, Tensor]) -> dict[str, Tensor]:
    assert bool(full) == world.is_main
    return world.broadcast_object(full)


def ending(student: Any) -> dict[str, Tensor]:
    return student.network().state_dict()


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
@pytest.mark.distributed
def test_continuation_is_exact_at_every_stage() -> None:
    """Bit for bit: losses, norms, network and state; BatchNorm per rank, so that buffers count; accumulation too."""
    cases = [
        Case(stage, optimizer, accumulation=1 + stage % 2, steps=4 + stage % 2, phase={})
        for stage in STAGES
        for optimizer in (SGD, ADAMW, SGD | {"momentum": 0.0})
    ]
    for rank in run(continued, 2, cases):
        for case, got in zip(cases, rank, strict=True):
            resumed = got["resumed"]
            assert resumed.losses == got["straight"].losses, case
            assert resumed.norms == got["straight"].norms, case
            assert equal(*got["final"]), case
            assert resumed.extra["steps"] == 5
            assert equal(resumed.extra["saved"][0], resumed.extra["again"][0]), case
            assert equal(resumed.extra["saved"][1], resumed.extra["again"][1]), case


def save_after(world: World, case: Case, steps: int) -> Saved:
    student = make_student(case, world)
    advance(student, case, world, 0, steps)
    return student.state(), student.local_state()


def resume_from(world: World, case: Case, saved: Saved, first: int) -> Outcome:
    student = make_student(case, world, Net(seed=99))
    student.load_state(*saved)
    outcome = advance(student, case, world, first, case.steps)
    outcome.network = ending(student)
    return outcome


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_state_moves_between_stages_and_world_sizes(optimizer: dict[str, Any]) -> None:
    """Two ranks at one stage -> one rank at another, and back, as if never interrupted."""
    straight = reference(Case(optimizer=optimizer))
    straight.losses, straight.norms = straight.losses[2:], straight.norms[2:]
    for saver, loader, source, target in ((2, 1, 3, 0), (1, 2, 0, 3), (2, 1, 1, 2), (1, 2, 2, 1)):
        saved = run(save_after, saver, Case(source, optimizer), 2)[0]
        for outcome in run(resume_from, loader, Case(target, optimizer), saved, 2):
            assert_close(outcome, straight)


def resume_without(world: World, left_out: str, saved: Saved) -> list[list[float]]:
    """Losses of two steps at stages 3 and 1 from a saved state, with a part of its loading left out."""
    whole = getattr(FullValues, left_out, None)
    if left_out:
        setattr(FullValues, left_out, lambda *_: None)
    try:
        return [resume_from(world, Case(stage, ADAMW), saved, 2).losses for stage in (3, 1)]
    finally:
        if left_out:
            setattr(FullValues, left_out, whole)


@pytest.mark.slow
@pytest.mark.distributed
def test_every_part_of_loading_counts() -> None:
    """Without the working weights, which the forward pass uses, or without moments, training is another one."""
    straight = reference(Case(optimizer=ADAMW)).losses[2:]
    saved = run(save_after, 2, Case(3, ADAMW), 2)[0]
    for losses in run(resume_without, 3, "", saved)[0]:
        assert losses == pytest.approx(straight, rel=2e-5)
    for losses in run(resume_without, 3, "_refresh", saved)[0]:
        assert losses[0] != pytest.approx(straight[0], rel=1e-3)
    for losses in run(resume_without, 3, "set_moment", saved)[0]:
        assert losses[0] == pytest.approx(straight[0], rel=2e-5)
        assert losses[1] != pytest.approx(straight[1], rel=1e-3)


def test_names_are_those_of_the_plain_network() -> None:
    full, local = run(save_after, 1, Case(2, ADAMW), 1)[0]
    names = [name for name, _ in Net().named_parameters()]
    trained = [name for name in names if name != "features.weight"]
    expected = {f"param.{name}" for name in names} | {"counter.steps"}
    expected |= {f"moment.{key}.{name}" for key in ("exp_avg", "exp_avg_sq") for name in trained}
    assert full.keys() == expected
    assert local.keys() == {f"buffer.{name}" for name, _ in Net().named_buffers()}
    for name, parameter in Net().named_parameters():
        assert full[f"param.{name}"].shape == parameter.shape
    assert full["counter.steps"] == 1


@pytest.mark.distributed
def test_state_before_the_first_step_is_the_start() -> None:
    """Saved before anything happened: continues as a fresh start does, whatever the loader did before."""
    for optimizer in (SGD, ADAMW):
        case = Case(1, optimizer)
        saved = run(save_after, 2, case, 0)[0]
        assert not any(key.startswith("moment.") for key in saved[0])
        assert_close(run(resume_from, 2, case, saved, 0)[1], reference(case))


def load_broken(world: World, key: str, value: Tensor | None) -> str:
    student = make_student(Case(2), world)
    advance(student, Case(2), world, 0, 1)
    full, local = student.state(), student.local_state()
    full = world.broadcast_object(full)
    entries = local if key.startswith("buffer.") else full
    if entries is full or world.rank == 1:
        entries.pop(key)
    if value is not None:
        entries[key] = value
    try:
        student.load_state(full, local)
    except CheckpointError as error:
        assert student.steps == 1
        return str(error)
    return "loaded"


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("param.conv2.bias", None, "param.conv2.bias: not in the checkpoint"),
        ("moment.momentum_buffer.fc.weight", None, "moment.momentum_buffer.fc.weight: not in the checkpoint"),
        ("param.fc.bias", torch.zeros(5), "param.fc.bias: must have the shape (6,), got (5,)"),
        ("buffer.bn.running_var", None, "buffer.bn.running_var: not in the checkpoint"),
    ],
)
def test_entries_missing_or_misshapen_are_named(key: str, value: Tensor | None, message: str) -> None:
    """On every rank, also where the entry was all right (here: rank 0's buffers)."""
    wrong = (1,) if key.startswith("buffer.") else (0, 1)
    assert run(load_broken, 2, key, value) == ["; ".join(f"rank {rank}: {message}" for rank in wrong)] * 2


def save_half_way(world: World) -> str:
    student = make_student(Case(1, accumulation=2), world)
    embeddings = student.embed(torch.ones(2, 3, 8, 8))
    student.backward(embeddings, embeddings.detach())
    assert not student.step()
    with pytest.raises(RuntimeError) as caught:
        student.state()
    return str(caught.value)


@pytest.mark.distributed
def test_no_state_while_gradients_accumulate() -> None:
    assert run(save_half_way, 1) == ["Student.state is not possible while gradients accumulate"]
