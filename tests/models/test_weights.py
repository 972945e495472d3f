"""Weights from files: known forms load, what does not fit or cannot be read is named."""

from __future__ import annotations

import argparse
import copy
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.network_cases import pictures, small, warmed
from helpers.same_network import assert_same_network
from partialkd.config import ModelConfig
from partialkd.errors import CheckpointError
from partialkd.models import build_model, load_weights

pytestmark = pytest.mark.usefixtures("one_thread")

WRAPPED = {
    "plain": lambda state: state,
    "module": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    "state_dict": lambda state: {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}},
    "arcface_torch": lambda state: {"epoch": 3, "global_step": 9, "state_dict_backbone": state, "state_optimizer": {}},
    "lightning": lambda state: {
        "state_dict": {"head.kernel": torch.zeros(16, 9)} | {f"model.{key}": value for key, value in state.items()},
        "hyper_parameters": {"arch": "ir_18"},
        "pytorch-lightning_version": "1.8.6",
    },
    "deepspeed": lambda state: {"module": {f"module.net.{key}": value for key, value in state.items()}, "lr": None},
    "any": lambda state: {f"wrapped.inner.{key}": value for key, value in state.items()},
    "with_options": lambda state: {"args": argparse.Namespace(lr=0.1), "model_state_dict": state},
    "no_counters": lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_known_forms_of_weights_load(form: str, tmp_path: Path) -> None:
    source = warmed(small("mobilefacenet"), 32)
    torch.save(WRAPPED[form](source.state_dict()), tmp_path / "weights.pt")
    target = build_model(small("mobilefacenet"), 32).eval()
    load_weights(target, tmp_path / "weights.pt")
    assert_same_network(target, source, pictures(2, 32))


def test_safetensors_and_half_precision_load(tmp_path: Path) -> None:
    source = warmed(small("iresnet18"), 32)
    save_file(
        {key: value.half() if value.is_floating_point() else value for key, value in source.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    target = build_model(small("iresnet18"), 32)
    load_weights(target, tmp_path / "w.safetensors")
    for key, value in target.state_dict().items():
        assert value.dtype == source.state_dict()[key].dtype
        torch.testing.assert_close(value, source.state_dict()[key], rtol=1e-3, atol=1e-4)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = build_model(small("mobilefacenet_gdc"), 32)
    before = copy.deepcopy(model.state_dict())
    state = dict(before)
    del state["conv1.conv.weight"]
    state["conv1.extra.weight"] = torch.zeros(2)
    state["conv_6_sep.bn.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "w.pt")
    message = str(caught.value)
    for part in (
        "w.pt",
        "1 keys missing: conv1.conv.weight",
        "1 keys unexpected: conv1.extra.weight",
        "conv_6_sep.bn.bias (3,) instead of (64,)",
    ):
        assert part in message
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_what_stands_beside_the_network_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = warmed(small("ir18"), 32)
    head = {"head.kernel": torch.zeros(16, 50), "head.t": torch.zeros(1), "model.fc.weight": torch.zeros(3, 16)}
    torch.save({"state_dict": head | {f"model.{k}": x for k, x in source.state_dict().items()}}, tmp_path / "a.ckpt")
    target = build_model(small("ir18"), 32).eval()
    with caplog.at_level(logging.INFO, logger="partialkd"):
        load_weights(target, tmp_path / "a.ckpt")
    assert_same_network(target, source, pictures(2, 32))
    (line,) = caplog.messages
    left = "left out 3 tensors beside the network (849 numbers): head.kernel, head.t, model.fc.weight"
    assert line == f"{tmp_path / 'a.ckpt'}: {left}"


def test_a_network_that_is_there_twice_must_be_chosen(tmp_path: Path) -> None:
    state = build_model(small("ir18"), 32).state_dict()
    twice = {f"{name}.{key}": value for name in ("student", "average") for key, value in state.items()}
    torch.save(twice, tmp_path / "w.pt")
    rule = r"w\.pt: must hold the network once: .*, got it under average\., student\.$"
    with pytest.raises(CheckpointError, match=rule):
        load_weights(build_model(small("ir18"), 32), tmp_path / "w.pt")


@pytest.mark.slow
@pytest.mark.parametrize("other", ["curricularface_ir50", "ir_se50"])
def test_relatives_are_told_apart(other: str, tmp_path: Path) -> None:
    """Their keys are those of the network that is wanted but for a few: more of them, or of another shape."""
    state = build_model(ModelConfig(name=other, embedding_dim=16), 16).state_dict()
    torch.save({f"net.{key}": value for key, value in state.items()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=rf"does not fit the network: .*; it looks like .*\b{other}\b"):
        load_weights(build_model(ModelConfig(name="ir50", embedding_dim=16), 16), tmp_path / "w.pt")


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


@pytest.mark.parametrize(
    "content", ["missing", "garbage", "list", "no_state", "nested", "code", "code_inside", "bad_safetensors"]
)
def test_unreadable_weights_are_errors(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ("w.safetensors" if content == "bad_safetensors" else "w.pt")
    objects = {
        "list": [1],
        "no_state": {"epoch": 1},
        "nested": {"model": {"model": {"model": {"model": {}}}}},
        "code": Trap(),
        "code_inside": {"model": {"conv1.conv.weight": Trap()}},
    }
    if content in objects:
        torch.save(objects[content], path)
    elif content != "missing":
        path.write_bytes(b"not weights at all")
    with pytest.raises(CheckpointError, match=r"w\."):
        load_weights(build_model(small("mobilefacenet_gdc"), 32), path)
    assert "unpickled" not in capsys.readouterr().out
