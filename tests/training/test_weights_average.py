"""Moving average of the weights, frozen first steps and rates by group: against plain torch, at every ZeRO stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.ranks import run
from helpers.student_cases import ADAMW, DIM, SGD, SIDE, STAGES, Case, Net, advance, global_batch, make_student
from partialkd.config import ModelConfig
from partialkd.models.build import FAMILIES, build_empty
from partialkd.models.network import head_parameters
from partialkd.world.world import World

DECAY = 0.6
Run = dict[str, Any]


def case_of(stage: int, optimizer: dict[str, Any] = SGD, **phase: Any) -> Case:
    start = {"weights": "of a file that is read elsewhere"} if phase.get("freeze_steps") else {}
    return Case(stage, optimizer, phase={"freeze_batchnorm": True, "ema_decay": DECAY, **start, **phase})


def reference(case: Case) -> dict[str, Tensor]:
    """The averaged network of the same training in plain torch, on the whole global batch, in one process."""
    model = Net().train()
    live = not case.phase["freeze_batchnorm"]
    settings = dict(case.optimizer)
    clip, factors = settings.pop("clip_norm"), settings.pop("lr_factors", {})
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[settings.pop("name")]
    head = [*model.fc.parameters(), model.features.bias]
    known = {id(one) for one in head}
    trunk = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    lr = settings.pop("lr")
    groups = [
        {"params": trunk, "lr": lr * factors.get("backbone", 1)},
        {"params": head, "lr": lr * factors.get("head", 1)},
    ]
    optimizer = kind(groups, **settings)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(case.steps):
        if step < case.phase.get("freeze_steps", 0):
            continue
        for norm in (model.bn, model.features):
            norm.train(live)
        images, targets = global_batch(step)
        optimizer.zero_grad()
        ((model(images) - targets).square().sum(1).mean() / 2).backward()
        nn.utils.clip_grad_norm_([*trunk, *head], clip)
        optimizer.step()
        for name, value in model.state_dict().items():
            kept = DECAY * average[name] + (1 - DECAY) * value if value.is_floating_point() else value
            average[name] = kept.clone()
    return average


def average_of(world: World, case: Case) -> tuple[Run, dict[str, Tensor]]:
    student = make_student(case, world, Net())
    advance(student, case, world, 0, case.steps)
    saved = {"full": world.broadcast_object(student.state()), "local": student.local_state()}
    network = student.network().state_dict()
    student.close()
    return saved, network


def averages(world: World, cases: list[Case]) -> list[tuple[Run, dict[str, Tensor]]]:
    return [average_of(world, case) for case in cases]


def check(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close({name: got[name]}, {name: value}, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_network_names_its_head(name: str) -> None:
    """A part of its parameters, the layer that makes the embedding among them."""
    network = build_empty(ModelConfig.model_validate({"name": name, "embedding_dim": 40}), 112)
    head, whole = list(head_parameters(network)), list(network.parameters())
    assert 0 < len(head) < len(whole)
    assert any(40 in one.shape for one in head)
    assert sum(one.numel() for one in head) < sum(one.numel() for one in whole)


FACTORS = {"lr_factors": {"backbone": 0.25, "head": 2.0}}
CASES = [
    case_of(0, ADAMW | FACTORS, freeze_steps=2),
    case_of(1),
    case_of(2, SGD | {"momentum": 0.0} | FACTORS),
    case_of(3, ADAMW | FACTORS, freeze_steps=2),
    replace(case_of(3, freeze_steps=1), accumulation=2),
]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_stage_equals_plain_torch(size: int) -> None:
    cases = [replace(case, accumulation=1) for case in CASES] if size == 3 else CASES  # 12 samples
    for rank in run(averages, size, cases):
        for case, (saved, network) in zip(cases, rank, strict=True):
            check(network, reference(case))
            for name, _ in Net().named_parameters():
                if name != "features.weight":
                    torch.testing.assert_close(saved["full"][f"average.{name}"], network[name], rtol=0, atol=0)


@pytest.mark.distributed
def test_running_statistics_are_averaged_too() -> None:
    """One rank with live BatchNorm; the counter of batches is the network's own."""
    for stage in (0, 1, 3):
        case = case_of(stage, freeze_batchnorm=False)
        check(run(average_of, 1, case)[0][1], reference(case))


def statistics(world: World, case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """A rank's own average of running means, what it must be, and the network's."""
    student = make_student(case, world, Net())
    live = student.engine.module.get_buffer("bn.running_mean")
    expected = live.clone()
    for step in range(case.steps):
        advance(student, case, world, step, step + 1)
        expected = DECAY * expected + (1 - DECAY) * live
    return student.local_state()["average.bn.running_mean"], expected, student.network().get_buffer("bn.running_mean")


@pytest.mark.distributed
def test_the_network_has_the_mean_of_the_ranks_statistics() -> None:
    found = run(statistics, 2, case_of(2, freeze_batchnorm=False))
    assert not torch.equal(found[0][0], found[1][0])
    for own, expected, shared in found:
        torch.testing.assert_close(own, expected)
        torch.testing.assert_close(shared, (found[0][0] + found[1][0]) / 2)


def save_at(world: World, cases: list[Case], steps: int) -> list[Run]:
    saved = []
    for case in cases:
        student = make_student(case, world, Net())
        advance(student, case, world, 0, steps)
        saved.append({"full": world.broadcast_object(student.state()), "local": student.local_state()})
        student.close()
    return saved


def go_on(world: World, cases: list[Case], saved: list[Run], steps: int) -> list[dict[str, Tensor]]:
    networks = []
    for case, one in zip(cases, saved, strict=True):
        student = make_student(case, world, Net(seed=77))
        student.load_state(one["full"], one["local"])
        advance(student, case, world, steps, case.steps)
        networks.append(student.network().state_dict())
        student.close()
    return networks


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_it_goes_on_at_any_stage_and_number_of_ranks(steps: int) -> None:
    """From before the first step, within the frozen steps and after them, as if never interrupted."""
    kinds: list[dict[str, Any]] = [{"optimizer": SGD}, {"optimizer": ADAMW, "freeze_steps": 2}]
    for saver, loader, stages in ((2, 1, (3, 0)), (1, 2, (1, 3))):
        first, second = ([case_of(stage, **kind) for kind in kinds] for stage in stages)
        saved = run(save_at, saver, first, steps)[0]
        for networks in run(go_on, loader, second, saved, steps):
            for case, network in zip(second, networks, strict=True):
                check(network, reference(case))


def frozen_steps(world: World, stage: int) -> list[bool]:
    """What is bit-equal after the frozen steps: parameters, running statistics; and after one more."""
    case = case_of(stage, SGD, freeze_steps=2, freeze_batchnorm=False)
    case = replace(case, phase={**case.phase, "ema_decay": None})
    student = make_student(case, world, Net())
    start = {name: x.clone() for name, x in student.network().state_dict().items()}
    advance(student, case, world, 0, 2)
    held = student.network().state_dict()
    local = student.local_state()
    advance(student, case, world, 2, 3)
    after = student.network().state_dict()
    same = all(torch.equal(held[name], start[name]) for name in start)
    buffers = torch.equal(local["buffer.bn.running_mean"], start["bn.running_mean"])
    moved = not torch.equal(after["fc.weight"], start["fc.weight"])
    return [same, buffers, moved, not torch.equal(after["bn.running_mean"], start["bn.running_mean"])]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_frozen_network_does_not_move_and_then_does() -> None:
    for stage in STAGES:
        assert run(frozen_steps, 2, stage) == [[True] * 4] * 2


def skip_a_step(world: World, stage: int, freeze: int) -> list[bool]:
    """A step that is not finite on one rank: refused on all, and the average is bit for bit what it was."""
    case = case_of(stage, freeze_steps=freeze, freeze_batchnorm=False)
    student = make_student(case, world, Net())
    student._guarded = True
    advance(student, case, world, 0, 1)
    before = student.network().state_dict()
    embeddings = student.embed(torch.randn(4, 3, SIDE, SIDE))
    student.backward(embeddings, torch.full((4, DIM), float("nan") if world.rank else 1.0))
    with pytest.raises(FloatingPointError):
        student.step()
    after = student.network().state_dict()
    equal = all(torch.equal(before[name], after[name]) for name in before)
    advance(student, case, world, 1, case.steps)
    return [equal, all(x.isfinite().all() for x in student.network().state_dict().values())]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("freeze", [0, 2])
def test_a_step_that_is_left_out_leaves_the_average(freeze: int) -> None:
    for stage in STAGES:
        assert run(skip_a_step, 2, stage, freeze) == [[True, True]] * 2
