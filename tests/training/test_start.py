"""Weights that a phase starts from: the network's own part of files that other programs wrote."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from partialkd.config import ModelConfig
from partialkd.errors import CheckpointError
from partialkd.models.build import build_model
from partialkd.training.start import read_network

MODEL = ModelConfig(name="mobilefacenet_gdc", embedding_dim=16, width=0.25, depth=0.5)
SIZE = 32
FORMS = {  # prefix of the network's keys, wrapper, other tensors beside it
    "plain": ("", None, {}),
    "Lightning, with the classifier of its training": ("model.", "state_dict", {"head.kernel": torch.ones(16, 9)}),
    "CVLface": ("net.", None, {}),
    "DeepSpeed": ("module.", "module", {}),
    "another program": ("student.encoder.", "model_state_dict", {"student.loss.scale": torch.ones(1)}),
}


def state_of(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return build_model(MODEL, SIZE).state_dict()


@pytest.mark.parametrize("form", FORMS)
def test_a_student_starts_from_whatever_file_a_teacher_may_be(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prefix, wrapper, beside = FORMS[form]
    state = state_of(1)
    content = {**{prefix + key: x for key, x in state.items()}, **beside}
    torch.save({wrapper: content, "epoch": 3} if wrapper else content, tmp_path / "theirs.pt")
    with caplog.at_level(logging.INFO, "partialkd"):
        found = read_network(tmp_path / "theirs.pt", MODEL, SIZE)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], x) for key, x in state.items())
    left_out = [line for line in caplog.messages if "left out" in line]
    assert len(left_out) == len(beside)
    assert all(key in line for key, line in zip(beside, left_out, strict=True))


def test_two_networks_in_one_file_must_be_told_apart(tmp_path: Path) -> None:
    both = {f"{name}.{key}": x for name in ("student", "teacher") for key, x in state_of(1).items()}
    torch.save(both, tmp_path / "both.pt")
    with pytest.raises(CheckpointError, match=r"both\.pt: must hold the network once: .* under student\., teacher\.$"):
        read_network(tmp_path / "both.pt", MODEL, SIZE)
