"""`partialkd train CONFIG --dry-run`: all that a run does before its first step; nothing of it stays but the data."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.jobs import tree
from helpers.ranks import run
from partialkd.commands.train import main
from partialkd.config import ModelConfig
from partialkd.config.load import parse_config, save_config
from partialkd.models.build import build_model
from partialkd.models.saved import save_model
from partialkd.run.begin import dry_run
from partialkd.training import outlets
from partialkd.world.world import World


def settings_of(folder: Path) -> dict[str, Any]:
    settings = tree(folder)
    del settings["alone"], settings["evaluate"]
    settings["student"]["method"] = {"name": "cosface", "scale": 16.0}
    return {**settings, "teacher": {"source": "none"}, "dist": {"device": "cpu"}}


def _dry(world: World, settings: dict[str, Any]) -> None:
    dry_run(parse_config(settings), world)


@pytest.mark.slow
@pytest.mark.distributed
def test_the_run_that_is_there_stays_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where a run of that name would be moved aside; on one rank, and on two."""
    settings = settings_of(tmp_path)
    save_config(parse_config(settings), tmp_path / "run.toml")
    assert main([str(tmp_path / "run.toml"), "--dry-run", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    sizes = {"images": 96, "identities": 12, "ranks": 1, "phases": ["student"], "teacher": {}}
    assert found == {"run": str(tmp_path / "runs" / "trial"), **sizes}
    got = capfd.readouterr()
    assert "96 images of 12 identities, student on 1 ranks: fit to run" in got.out + got.err
    assert (tmp_path / "data" / "train.rec").is_file()
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs" / "trial").mkdir(parents=True)
    (tmp_path / "runs" / "trial" / "config.toml").write_text("kept")
    run(_dry, 2, settings)
    there = [path.relative_to(tmp_path / "runs").as_posix() for path in (tmp_path / "runs").rglob("*")]
    assert sorted(there) == ["trial", "trial/config.toml"]
    assert (tmp_path / "runs" / "trial" / "config.toml").read_text() == "kept"


def test_it_finds_what_would_end_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that knows nothing; a batch that cannot be shared, or a missing package, before the data are made."""
    model = ModelConfig(name="mobilefacenet_gdc", embedding_dim=16, width=0.25, depth=0.5)
    torch.manual_seed(0)
    save_model(tmp_path / "random.safetensors", build_model(model, 32), model, 32)
    settings = {**tree(tmp_path), "dist": {"device": "cpu"}}
    del settings["alone"]
    settings["teacher"] = {"source": "checkpoint", "path": str(tmp_path / "random.safetensors")}
    save_config(parse_config(settings), tmp_path / "run.toml")
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "run.toml"), "student.accumulation=5", "--dry-run"])
    assert end.value.code == 2
    assert "student.global_batch: must be divisible by accumulation (5), got 24" in capfd.readouterr().err
    with monkeypatch.context() as without:
        without.setattr(outlets, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
        assert main([str(tmp_path / "run.toml"), "run.wandb=offline", "--dry-run"]) == 2
    assert 'run.wandb: needs the package wandb, got "offline"' in capfd.readouterr().err
    assert not (tmp_path / "data").exists()
    assert main([str(tmp_path / "run.toml"), "--dry-run"]) == 2
    assert "is little better than guessing" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()
