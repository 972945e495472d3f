"""Compiled networks against plain ones: training, saved state, teachers, a whole job; where compiling is refused.

What takes the time is the C++ compiler, a minute for the smallest network of ours. So C++ is made of a few layers only;
elsewhere a network is traced, differentiated and called as compiled ones are, and its operations run as torch has them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from ranks import run
from safetensors.torch import load_file
from student_cases import DIM, Case, Net, Outcome, advance, assert_close, make_student, reference
from torch import Tensor, nn

from partialkd import job as module
from partialkd.config_files import check_same_run, parse_config, save_config
from partialkd.dist import World
from partialkd.errors import ConfigError
from partialkd.job import run_job
from partialkd.models import compiled
from partialkd.models.teacher import GROUP, wrap_teacher

CPU = torch.device("cpu")
SIDE = 16
MODEL = {"name": "iresnet18", "embedding_dim": 9, "width": 0.125, "depth": 0.1}
PLAIN, COMPILED = {"freeze_batchnorm": True}, {"freeze_batchnorm": True, "compile": True}


# --------------------------------------------------------------------------------------------------- the student


def train(world: World, stages: list[int]) -> list[Outcome]:
    """Two steps compiled, then two plain from what was saved; and the other way round."""
    with patch.object(compiled, "BACKEND", "aot_eager"):
        return _train(world, stages)


def _train(world: World, stages: list[int]) -> list[Outcome]:
    outcomes = []
    for stage in stages:
        for first, second in ((COMPILED, PLAIN), (PLAIN, COMPILED)):
            case = Case(stage, accumulation=2, phase=first)
            student = make_student(case, world)
            begun = advance(student, case, world, 0, 2)
            full, local = world.broadcast_object(student.state()), student.local_state()
            student.close()
            case = replace(case, phase=second)
            student = make_student(case, world, Net(seed=8))
            student.load_state(full, local)
            ended = advance(student, case, world, 2, 4)
            state = student.network().state_dict()
            outcomes.append(Outcome(begun.losses + ended.losses, begun.norms + ended.norms, state))
            student.close()
    return outcomes


@pytest.mark.slow
@pytest.mark.distributed
def test_a_compiled_student_trains_as_plain_torch_does_and_either_resumes_the_other() -> None:
    expected = reference(Case())
    for got in run(train, 2, [0, 1, 2])[0]:
        assert_close(got, expected)


# --------------------------------------------------------------------------------------------------- the teacher


def pictures(count: int) -> Tensor:
    return torch.rand((count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)) * 2 - 1


def small_network() -> nn.Module:
    network = Net()
    network.fc = nn.Linear(SIDE**2 * 2, DIM)
    return network


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@patch("torch._inductor.config.compile_threads", 1)  # helpers would take longer to start than they save
def test_a_compiled_teacher_is_the_plain_one_up_to_rounding_and_compiled_once() -> None:
    network, images = small_network().eval(), pictures(2 * GROUP + 5)
    plain, fast = wrap_teacher(network, SIDE, CPU), wrap_teacher(network, SIDE, CPU, compiled=True)
    assert fast.fingerprint == plain.fingerprint
    whole, expected = fast.embed(images), plain.embed(images)
    assert float((whole - expected).norm()) < 1e-5 * float(expected.norm())
    with torch.compiler.set_stance("fail_on_recompile"):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
        assert torch.equal(fast.embed(images[order]), whole[order])
        assert torch.equal(fast.embed(images[:1]), whole[:1])
        assert fast.embed(images[:0]).shape == (0, DIM)
    assert list(fast.network.state_dict()) == list(network.state_dict())
    with torch.compiler.set_stance("fail_on_recompile"):  # a copy is the plain network
        assert torch.equal(wrap_teacher(copy.deepcopy(fast.network), SIDE, CPU).embed(images), expected)


# --------------------------------------------------------------------------------------------------- a whole job


def settings(folder: Path, compile: bool) -> dict[str, Any]:
    phase = {
        "model": MODEL, "method": {"name": "arcface", "scale": 16.0}, "epochs": 1, "global_batch": 12,
        "schedule": {"name": "constant"},
    }  # fmt: skip
    return {
        "run": {"name": "trial", "folder": str(folder), "log_every": 1, "tensorboard": False},
        "data": {
            "source": "synthetic", "path": "none", "image_size": SIDE, "loader": "jpeg", "workers": 1,
            "synthetic_identities": 5, "synthetic_images": 48,
        },
        "teacher": {"source": "train", "train": phase, "compile": compile},
        "student": {**phase, "method": {"name": "adadistill", "scale": 16.0}, "compile": compile},
    }  # fmt: skip


def job(world: World, folder: Path, compile: bool) -> list[tuple[str, float]]:
    """-> phase and loss of every step."""
    with patch.object(module, "export", lambda *_: None), patch.object(compiled, "BACKEND", "aot_eager"):
        run_job(parse_config(settings(folder, compile)), world)
    lines = (folder / "trial" / "metrics.jsonl").read_text().splitlines()
    return [(line["phase"], line["loss"]) for line in map(json.loads, lines)]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_job_with_both_networks_compiled_has_the_losses_of_the_plain_one(tmp_path: Path) -> None:
    plain, fast = (run(job, 1, tmp_path / str(flag), flag)[0] for flag in (False, True))
    assert [phase for phase, _ in fast] == ["teacher"] * 4 + ["student"] * 4
    assert [loss for _, loss in fast] == pytest.approx([loss for _, loss in plain], rel=1e-4)
    saved = [load_file(tmp_path / str(flag) / "trial" / "student" / "model.safetensors") for flag in (False, True)]
    assert saved[0].keys() == saved[1].keys()


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.fixture
def untried() -> Iterator[None]:
    """As in a process that has not compiled anything yet."""
    compiled._problem.cache_clear()
    yield
    compiled._problem.cache_clear()


@pytest.mark.usefixtures("untried")
def test_a_machine_without_a_compiler_is_told_before_anything_is_made(tmp_path: Path) -> None:
    config = parse_config(settings(tmp_path, True))
    with (
        patch("torch._inductor.config.cpp.cxx", ("no-such-compiler",)),
        pytest.raises(ConfigError, match=r"^teacher\.compile must be false where torch\.compile does not work.*C\+\+"),
    ):
        run_job(config, World())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student": {"zero_stage": 3}}, r"^config: student\.compile: must be false with zero_stage = 3"),
        ({"student": {"sync_batchnorm": True}}, r"^config: student\.compile: must be false with sync_batchnorm = true"),
        (
            {"student": {"model": {**MODEL, "activation_checkpointing": True}}},
            r"^config: student\.compile: must be false with model.activation_checkpointing = true",
        ),
        (
            {"teacher": {"source": "onnx", "path": "x", "embedding_dim": 9}},
            r'compile: must be false with source = "onnx"',
        ),
    ],
    ids=["stage", "batchnorm", "recomputed", "onnx"],
)
def test_what_cannot_be_compiled_is_refused_by_name(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    tree = settings(tmp_path, True)
    for section, keys in change.items():
        tree[section] |= keys
    with pytest.raises(ConfigError, match=said):
        parse_config(tree)


def test_both_keys_may_differ_on_resume(tmp_path: Path) -> None:
    save_config(parse_config(settings(tmp_path, True)), tmp_path / "config.toml")
    check_same_run(parse_config(settings(tmp_path, False)), tmp_path / "config.toml")
