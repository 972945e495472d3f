"""Compiled networks against plain ones: training, saved state, teachers, a whole job; where compiling is refused.

What takes the time is the C++ compiler, a minute for the smallest network of ours. So C++ is made of a few layers only;
elsewhere a network is traced, differentiated and called as compiled ones are, and its operations run as torch has them.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

from helpers.ranks import run
from helpers.student_cases import DIM, Case, Net, Outcome, advance, assert_close, make_student, reference
from partialkd.config.load import parse_config, save_config
from partialkd.config.resume import check_same_run
from partialkd.errors import ConfigError
from partialkd.models import compiled
from partialkd.run import checks
from partialkd.run import job as module
from partialkd.run.begin import prepare_job
from partialkd.run.job import run_job
from partialkd.teacher.network import GROUP, LARGEST_PART, part_of, wrap_teacher
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

CPU = torch.device("cpu")
SIDE = 16
MODEL = {"name": "iresnet18", "embedding_dim": 9, "width": 0.125, "depth": 0.1}
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler (g++, or what CXX names)"
)
PLAIN, COMPILED = {"freeze_batchnorm": True}, {"freeze_batchnorm": True, "compile": True}


# --------------------------------------------------------------------------------------------------- the student


def train(world: World, stages: list[int]) -> list[Outcome]:
    """Two steps compiled, then two plain from what was saved; at stage 1 the other way round."""
    with patch.object(compiled, "BACKEND", "aot_eager"):
        return [_train(world, stage, *((PLAIN, COMPILED) if stage == 1 else (COMPILED, PLAIN))) for stage in stages]


def _train(world: World, stage: int, first: dict[str, Any], second: dict[str, Any]) -> Outcome:
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
    student.close()
    return Outcome(begun.losses + ended.losses, begun.norms + ended.norms, state)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_compiled_student_trains_as_plain_torch_does_and_either_resumes_the_other() -> None:
    expected = reference(Case())
    for got in run(train, 2, [1, 2])[0]:  # stage 0: below, compiled to C++
        assert_close(got, expected)


class Few(nn.Module):
    """Layers that C++ is soon made of."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.fc, self.act, self.dropout = nn.Linear(3 * 8 * 8, DIM), nn.PReLU(DIM), nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.act(self.fc(images.flatten(1))))


@patch("torch._inductor.config.compile_threads", 1)  # helpers would take longer to start than they save
def in_c(world: World, phase: dict[str, Any], dropout: float) -> tuple[list[Tensor], list[Tensor]]:
    """-> embeddings and gradients of a micro-step, then the parameters two steps later; these again, resumed."""
    torch.set_num_threads(1)
    graphs = counters["stats"]["unique_graphs"]
    case = Case(phase=phase)
    student = make_student(case, world, Few(dropout))
    torch.manual_seed(5)
    embeddings = student.embed(torch.randn(12, 3, 8, 8))
    first = [embeddings.detach().clone()]
    student.backward(embeddings, torch.randn(12, DIM))
    first += [parameter.grad.clone() for parameter in student.engine.module.parameters() if parameter.grad is not None]
    student.step()
    full, local, drawn = student.state(), student.local_state(), torch.get_rng_state()
    advance(student, case, world, 1, 3)
    ended = [parameter.detach() for parameter in student.network().parameters()]
    student.close()
    student = make_student(case, world, Few(dropout))
    student.load_state(full, local)
    torch.set_rng_state(drawn)
    advance(student, case, world, 1, 3)
    resumed = [parameter.detach() for parameter in student.network().parameters()]
    student.close()
    assert (counters["stats"]["unique_graphs"] > graphs) == student.phase.compile
    return first + ended, first + resumed


@needs_compiler
@pytest.mark.slow
@pytest.mark.distributed
def test_what_a_student_compiled_to_c_computes_is_what_the_plain_one_does_up_to_rounding() -> None:
    (plain, _), (fast, _) = (run(in_c, 1, {"compile": flag}, 0.0)[0] for flag in (False, True))
    assert len(fast) == len(plain) == 1 + 2 * 3  # the gradients and the parameters of three
    for got, expected in zip(fast, plain, strict=True):
        assert float((got - expected).norm()) < 1e-5 * float(expected.norm())


@needs_compiler
@pytest.mark.slow
@pytest.mark.distributed
def test_with_dropout_a_compiled_student_goes_on_bit_for_bit() -> None:
    whole, resumed = run(in_c, 1, {"compile": True}, 0.5)[0]
    assert 0 < int((whole[0] == 0).sum()) < whole[0].numel()
    for got, expected in zip(resumed, whole, strict=True):
        assert torch.equal(got, expected)


# --------------------------------------------------------------------------------------------------- the teacher


def pictures(count: int) -> Tensor:
    return torch.rand((count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)) * 2 - 1


def small_network() -> nn.Module:
    network = Net()
    network.fc = nn.Linear(SIDE**2 * 2, DIM)
    return network


@needs_compiler
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


@pytest.mark.parametrize("batch", [1, 2, 32, 63, 64, 65, 96, 128, 500])
def test_on_gpus_a_batch_is_split_into_few_equal_parts(batch: int) -> None:
    part, calls = part_of(batch), -(-batch // LARGEST_PART)
    assert part <= LARGEST_PART
    assert batch <= calls * part < batch + calls  # less than an image too many in each call


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


@pytest.mark.slow
@pytest.mark.usefixtures("untried")
def test_a_machine_without_a_compiler_is_told_before_anything_is_made(tmp_path: Path) -> None:
    config = parse_config(settings(tmp_path, True))
    with (
        patch("torch._inductor.config.cpp.cxx", ("no-such-compiler",)),
        pytest.raises(ConfigError, match=r"^teacher\.compile must be false where torch\.compile does not work.*C\+\+"),
    ):
        run_job(config, World())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize(
    ("cache", "sets", "wanted"),
    [("auto", [], True), ("kept", ["lfw.bin"], True), ("kept", [], False)],
    ids=["to be made", "scored", "kept"],
)
def test_the_teacher_wants_a_compiler_where_its_network_embeds(
    cache: str, sets: list[str], wanted: bool, tmp_path: Path
) -> None:
    tree = settings(tmp_path, False)
    tree["teacher"] |= {"compile": True, "cache": cache}
    tree["evaluate"] = {"sets": sets}
    refused: AbstractContextManager[Any] = (
        pytest.raises(ConfigError, match=r"^teacher\.compile must be false") if wanted else nullcontext()
    )
    with (
        patch("torch._inductor.config.cpp.cxx", ("no-such-compiler",)),
        patch.object(checks, "look_at_sets"),
        StopSignals() as stop,
        refused,
    ):
        prepare_job(parse_config(tree), World(), "never", stop)


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
