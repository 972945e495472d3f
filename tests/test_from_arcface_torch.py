"""docs/from_arcface_torch.md: its configuration is one, its keys exist, and what it says is read is read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file

from helpers.places import ROOT
from partialkd.config import ArcFaceConfig, Config, ModelConfig
from partialkd.config.load import parse_config
from partialkd.models.build import build_model
from partialkd.models.saved import save_model
from partialkd.models.weights import read_weights

PAGE = (ROOT / "docs" / "from_arcface_torch.md").read_text(encoding="utf-8")
TABLE = [line.split(" | ") for line in PAGE.splitlines() if line.startswith(("| `", "| its"))]
KEYS = sorted(set(re.findall(r"`((?:run|data|student|teacher|evaluate)\.[a-z_.]+)[`= ]", PAGE)))


def exists(dotted: str) -> bool:
    """Whether it is a key of the configuration; of the methods', ArcFace's."""
    section: Any = Config
    for name in dotted.split("."):
        if not (isinstance(section, type) and issubclass(section, BaseModel) and name in section.model_fields):
            return False
        kinds = section.model_fields[name].annotation
        found = [kind for kind in (kinds, *get_args(kinds)) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        section = ArcFaceConfig if ArcFaceConfig in found else found[0] if found else None
    return True


def test_the_configuration_is_one() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    config = parse_config(tomllib.loads(text))
    assert config.student.global_batch == 128 * 8
    assert (config.student.epochs, config.student.optimizer.lr) == (20, 0.1)
    schedule = config.student.schedule
    assert (schedule.name, schedule.power, schedule.final, schedule.warmup_steps) == ("poly", 1.0, 0.0, 0)


@pytest.mark.parametrize("key", KEYS)
def test_keys_exist(key: str) -> None:
    assert exists(key)


def test_keys_are_looked_at() -> None:
    assert len(KEYS) > 25
    assert len(TABLE) > 15
    assert not exists("student.centres.rate")
    assert not exists("student.global_batch.more")


def test_networks_exist() -> None:
    (row,) = [line for line in TABLE if line[0].startswith("| `network`")]
    named = set(re.findall(r"`((?:iresnet|mobilefacenet|vit_(?:tiny|small|base))\w*)`", row[2]))
    known = get_args(ModelConfig.model_fields["name"].annotation)
    assert named < set(known)
    theirs = {name for name in known if name.startswith(("iresnet", "mobilefacenet", "vit_"))}
    assert theirs - named == {"iresnet34", "iresnet50", "iresnet100", "mobilefacenet_gdc"}  # "..." and not theirs


def test_backbones_load_from_each_of_its_files(tmp_path: Path) -> None:
    """And the keys of a model.safetensors are those."""
    config = ModelConfig(name="mobilefacenet", embedding_dim=16, width=0.25)
    state = build_model(config, 32).state_dict()
    torch.save(state, tmp_path / "model.pt")
    whole = {"epoch": 1, "state_dict_backbone": state, "state_dict_softmax_fc": {"weight": torch.zeros(3, 16)}}
    torch.save(whole, tmp_path / "checkpoint_gpu_0.pt")
    for name in ("model.pt", "checkpoint_gpu_0.pt"):
        assert read_weights(tmp_path / name).keys() == state.keys()
    save_model(tmp_path / "model.safetensors", build_model(config, 32), config, 32)
    assert load_file(tmp_path / "model.safetensors").keys() == state.keys()
