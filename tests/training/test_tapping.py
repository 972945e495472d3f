"""Taps and adapters in training: against plain torch at every ZeRO stage, resumed at other ranks."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.ranks import run
from partialkd.centres.store import CentreStore
from partialkd.config import Config, ModelConfig, PhaseConfig
from partialkd.config.load import parse_config
from partialkd.context import RunContext
from partialkd.data.sources.open import open_source
from partialkd.errors import ConfigError
from partialkd.methods.terms import TermInputs, Terms
from partialkd.models import build_model
from partialkd.models.build import FAMILIES, build_empty
from partialkd.models.network import Network
from partialkd.models.taps import tapped_channels
from partialkd.teacher.network import wrap_teacher
from partialkd.training.student import Student
from partialkd.training.tapping import Tapping, wires_of
from partialkd.training.trainer import Trainer
from partialkd.world.shard import shard_of
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

SIDE, BATCH, DIM, STEPS = 16, 12, 8, 3
STUDENT = {"name": "mobilefacenet_gdc", "embedding_dim": DIM, "width": 0.125, "depth": 0.25}
TEACHER = {"name": "iresnet18", "embedding_dim": DIM, "width": 0.125, "depth": 0.5}
FITNETS = {"name": "fitnets", "weight": 3.0, "student_taps": ("conv_3", "conv_5"), "teacher_taps": ("layer3", "layer1")}
ATTENTION = {"name": "attention", "weight": 2.0}
NST = {"name": "nst", "student_taps": ("conv_3",), "teacher_taps": ("layer2",)}


def phase_of(**changes: Any) -> PhaseConfig:
    settings = {
        "model": STUDENT, "method": {"name": "arcface"}, "epochs": 1.0, "global_batch": BATCH, "freeze_batchnorm": True,
        "optimizer": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0, "clip_norm": 0.0}, "terms": (FITNETS,),
        "schedule": {"name": "constant"},
    }  # fmt: skip
    return PhaseConfig.model_validate(settings | changes)


def networks() -> tuple[Network, Network]:
    torch.manual_seed(4)
    teacher = build_model(ModelConfig.model_validate(TEACHER), SIDE).eval()
    return build_model(ModelConfig.model_validate(STUDENT), SIDE), teacher


def batch(step: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 3, SIDE, SIDE, generator=g), torch.randn(BATCH, DIM, generator=g)


def stepped(world: World, stages: list[int]) -> dict[int, tuple[dict[str, Tensor], list[str]]]:
    """The state of the student after some steps, by ZeRO stage, and the names in what comes out."""
    found = {}
    for stage in stages:
        phase = phase_of(zero_stage=stage)
        network, teacher = networks()
        frozen = wrap_teacher(teacher, SIDE, world.device)
        taps = Tapping(wires_of(phase, "student", network, frozen.network), frozen.network)
        student, terms = Student(network, phase, world, 20, taps=taps), Terms(phase.terms)
        for step in range(STEPS):
            images, targets = (x.chunk(world.size)[world.rank] for x in batch(step))
            embeddings = student.embed(images)
            cut = embeddings.detach().requires_grad_()
            taught = frozen.embed(images)
            inputs = TermInputs(cut, torch.zeros(len(cut)).long(), taught, world, taps=taps.pairs(len(cut)))
            (term,) = terms.named.values()
            ((cut - targets).square().sum(1).mean() / 2 + 3.0 * term.loss(inputs)).backward()
            student.backward(embeddings, cut.grad)
            student.step()
        found[stage] = student.state(), [name for name, _ in student.network().named_parameters()]
        student.close()
        assert not any(module._forward_hooks for module in frozen.network.modules())
    return found


def maps_of(student: Network, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The student's forward pass, by hand: the maps behind conv_3 and conv_5, the embeddings."""
    x, kept = images, {}
    for name, part in student.named_children():
        x = part(x)
        kept[name] = x
    return kept["conv_3"], kept["conv_5"], x


def plain() -> dict[str, Tensor]:
    """The same steps in plain torch."""
    student, teacher = networks()
    adapters = [nn.Conv2d(8, 32, 1), nn.Conv2d(16, 8, 1)]  # drawn where Tapping draws them
    student.train()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()
    named = dict(student.named_parameters())
    named |= {f"adapters.{at}.{key}": x for at, one in enumerate(adapters) for key, x in one.named_parameters()}
    optimizer = torch.optim.SGD(named.values(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        images, targets = batch(step)
        first, last, embeddings = maps_of(student, images)
        with torch.no_grad():
            x = teacher.layer1(teacher.prelu(teacher.bn1(teacher.conv1(images))))
            hints = [teacher.layer3(teacher.layer2(x)), x]
        losses = []
        for adapter, own, hint in zip(adapters, (first, last), hints, strict=True):
            side = min(own.shape[2], hint.shape[2])
            one, other = (F.avg_pool2d(maps, maps.shape[2] // side) for maps in (adapter(own), hint))
            losses.append((one - other).square().mean() / 2)
        optimizer.zero_grad()
        ((embeddings - targets).square().sum(1).mean() / 2 + 3.0 * sum(losses)).backward()
        optimizer.step()
    return {f"param.{name}": x.detach() for name, x in named.items()}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("size", "stages"), [(1, [0]), (2, [0, 1, 2, 3])])
def test_student_and_adapters_train_as_in_plain_torch(size: int, stages: list[int]) -> None:
    wanted = plain()
    own = {name for name, _ in networks()[0].named_parameters()}
    found = run(stepped, size, stages)[0]
    for stage in stages:
        state, names = found[stage]
        assert set(names) == own  # no adapters
        assert {key for key in state if key.startswith("param.")} == wanted.keys()
        assert "moment.momentum_buffer.adapters.1.weight" in state
        for key, value in wanted.items():
            torch.testing.assert_close(state[key], value, atol=2e-5, rtol=2e-4, msg=lambda text, k=key: f"{k}: {text}")


# ---------------------------------------------------------------------------------------------- the trainer


def config_of(folder: Path, **changes: Any) -> Config:
    changes |= {"optimizer": {"lr": 0.01, "clip_norm": 1.0}}
    phase = phase_of(terms=(FITNETS, ATTENTION, NST, {"name": "angular", "weight": 0.5}), **changes)
    tree: dict[str, Any] = {
        "run": {"name": "trial", "folder": str(folder), "log_every": 1, "tensorboard": False},
        "data": {
            "source": "synthetic", "path": "none", "image_size": SIDE, "loader": "jpeg", "workers": 1,
            "synthetic_identities": 11, "synthetic_images": 60,
        },
        "teacher": {"source": "checkpoint", "path": "none.pt", "model": TEACHER},
        "student": {**phase.model_dump(mode="json", exclude_none=True), "epochs": 2},
    }  # fmt: skip
    return parse_config(tree)


def train(world: World, config: Config, resume: bool) -> list[dict[str, Any]]:
    """-> the lines of metrics.jsonl."""
    teacher = wrap_teacher(networks()[1], SIDE, world.device)
    store = CentreStore.random(shard_of(11, world.rank, world.size), 11, DIM, torch.float32, world.device, seed=2)
    stop = StopSignals()
    context = RunContext(config, world, open_source(config.data), Path(config.run.folder), stop)
    one = Trainer("student", config.student, context, store, teacher)
    try:
        one.run(resume)
    finally:
        one.close()
        stop.forget()
    world.barrier()
    return [json.loads(line) for line in (Path(config.run.folder) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_goes_on_at_another_number_of_ranks_and_stage(tmp_path: Path) -> None:
    straight = run(train, 1, config_of(tmp_path / "a", max_steps=6), False)[0]
    run(train, 2, config_of(tmp_path / "b", max_steps=3, zero_stage=3), False)
    resumed = run(train, 1, config_of(tmp_path / "b", max_steps=6, zero_stage=1), True)[0]
    assert [line["step"] for line in resumed] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "term_0_fitnets", "term_1_attention", "term_2_nst", "term_3_angular"):
        assert [line[key] for line in resumed] == pytest.approx([line[key] for line in straight], rel=1e-3)
        assert len({line[key] for line in resumed}) == 6


# ------------------------------------------------------------------------------------------------- what is named


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_network_names_its_stages(name: str) -> None:
    network = build_empty(ModelConfig(name=name, embedding_dim=8, width=0.125, depth=0.1), 32)  # type: ignore[arg-type]
    channels = tapped_channels(network, network.stage_ends, "student.terms.0.teacher_taps", training=False)
    assert channels == sorted(channels)


@pytest.mark.parametrize(
    ("term", "told"),
    [
        ({"student_taps": ("layer2",)}, "student.terms.0.student_taps: must name modules of the network, got 'layer2'"),
        ({"teacher_taps": ("layer9",)}, "teacher_taps: must name modules of the network, got 'layer9'; like it: layer"),
        ({"teacher_taps": ("",)}, "got ''; there are conv1, bn1, prelu, layer1, layer2, layer3, layer4, bn2, "),
        ({"teacher_taps": ("layer1.7",)}, "teacher_taps: must name modules of"),
    ],
)  # fmt: skip
def test_a_tap_that_does_not_exist_is_named(term: dict[str, Any], told: str) -> None:
    student, teacher = networks()
    phase = phase_of(terms=({"name": "fitnets", **term},))
    with pytest.raises(ConfigError) as error:
        wires_of(phase, "student", student, teacher)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_what_gives_no_picture_or_nothing_is_named() -> None:
    vit = build_empty(ModelConfig(name="vit_tiny", embedding_dim=8, width=0.125), 36)
    with pytest.raises(ConfigError, match=r"key: blocks\.11 must give maps .* got \(2, [0-9]+, "):
        tapped_channels(vit, ["blocks.11"], "key", training=True)
    student, _ = networks()
    student.add_module("unused", nn.Identity())
    with pytest.raises(ConfigError, match="key: unused is not called in a forward pass"):
        tapped_channels(student, ["unused"], "key", training=True)


@pytest.mark.parametrize(
    ("section", "changes", "told"),
    [
        ("teacher", {"source": "onnx", "path": "t.onnx", "embedding_dim": DIM, "model": None},
         'teacher.source must be "train" or "checkpoint" with student.terms.0.name = "fitnets"'),
        ("teacher", {"cache": "auto"}, "teacher.cache must be left out with student.terms.0.name"),
        ("teacher", {"compile": True}, "teacher.compile must be false with student.terms.0.name"),
        ("student", {"compile": True}, 'compile must be false with terms.0.name = "fitnets"'),
        ("student", {"model": {**STUDENT, "activation_checkpointing": True}}, "activation_checkpointing must be false"),
        ("student", {"terms": ({"name": "attention", "student_taps": ("conv_3",)},)},
         "teacher_taps must be as many as student_taps (1), got the 4 of the network itself"),
        ("student", {"terms": ({"name": "nst", "teacher_taps": ("layer1", "layer2")},)}, "(1), got ['layer1', "),
    ],
)  # fmt: skip
def test_settings_that_taps_rule_out(section: str, changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    tree = copy.deepcopy(config_of(tmp_path).model_dump(mode="json", exclude_none=True))
    tree[section] = {key: value for key, value in {**tree[section], **changes}.items() if value is not None}
    with pytest.raises(ConfigError) as error:
        parse_config(tree)
    assert told in str(error.value).replace(": must", " must").replace(": activation", " activation")
    assert "\n" not in str(error.value)


def test_without_layers_an_angular_term_takes_kept_embeddings(tmp_path: Path) -> None:
    tree = config_of(tmp_path).model_dump(mode="json", exclude_none=True)
    tree["teacher"]["cache"] = "auto"
    tree["student"]["terms"] = ({"name": "angular", "layer_weight": 0.0},)
    assert parse_config(tree).student.terms[0].taps is None
