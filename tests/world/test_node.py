"""launch/node.sh as on two machines, which are this one twice: a rank each, that find each other and train together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.jobs import ENVIRONMENT, tree
from helpers.places import ROOT
from partialkd.config.load import parse_config, save_config
from partialkd.world.world import free_port

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
# What a PyTorchJob says to ranks that it starts itself: none of it may reach torchrun.
STRANGE = {"RANK": "7", "WORLD_SIZE": "9", "MASTER_ADDR": "nowhere", "PET_NNODES": "5", "PET_NODE_RANK": "4"}


def started(config: Path, **environment: str) -> subprocess.Popen[str]:
    own = {name: value for name, value in ENVIRONMENT.items() if name not in STRANGE}
    return subprocess.Popen(
        [str(ROOT / "launch" / "node.sh"), str(config)],
        env={**own, "PATH": PATH, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.distributed
def test_two_machines_train_together(tmp_path: Path) -> None:
    """One is numbered as a person does it, the other one as an Indexed Job of Kubernetes does."""
    settings = tree(tmp_path)
    del settings["alone"], settings["evaluate"]
    settings |= {"teacher": {"source": "none"}, "dist": {"device": "cpu"}}
    settings["student"]["method"] = {"name": "cosface", "scale": 16.0}
    save_config(parse_config(settings), tmp_path / "run.toml")
    shared = {"NODES": "2", "HEAD": "127.0.0.1", "ADDRESS": "127.0.0.1", "PORT": str(free_port()), "NPROC": "1"}
    numbers = ({"NODE_RANK": "0", **STRANGE}, {"JOB_COMPLETION_INDEX": "1"})
    nodes = [started(tmp_path / "run.toml", **shared, **number) for number in numbers]
    said = [node.communicate(timeout=600) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    result = json.loads((tmp_path / "runs" / "trial" / "result.json").read_text())
    assert result["world_size"] == 2
    assert sorted(path.name for path in (tmp_path / "runs" / "trial" / "logs").glob("*.log")) == [
        "rank_0.log",
        "rank_1.log",
    ]


@pytest.mark.parametrize("missing", ["NODES", "NODE_RANK", "HEAD"])
def test_what_must_be_said(missing: str, tmp_path: Path) -> None:
    given = {"NODES": "2", "NODE_RANK": "0", "HEAD": "127.0.0.1"}
    del given[missing]
    node = started(tmp_path / "run.toml", **given)
    _, errors = node.communicate(timeout=60)
    assert node.returncode == 1
    assert missing in errors
