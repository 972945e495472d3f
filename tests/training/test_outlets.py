"""Weights & Biases: nothing unless asked, and offline nothing leaves this machine. With the package, if it is there."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from partialkd.config import RunConfig
from partialkd.errors import ConfigError
from partialkd.training import outlets
from partialkd.training.outlets import MetricsFile, open_outlets, require_outlets

ASKED = RunConfig(name="trial", tensorboard=False, wandb="offline")


def test_nothing_is_opened_or_imported_unless_asked(tmp_path: Path) -> None:
    (only,) = open_outlets(tmp_path, "student", 0, RunConfig(name="trial", tensorboard=False))
    only.close()
    assert isinstance(only, MetricsFile)
    assert "wandb" not in sys.modules


def test_what_is_asked_for_and_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlets, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r'run\.wandb: needs the package wandb, got "offline"'):
        open_outlets(tmp_path, "student", 0, ASKED)
    with pytest.raises(ConfigError, match=r"run\.tensorboard: needs the package tensorboard, got true"):
        require_outlets(RunConfig(name="trial", tensorboard=True))
    require_outlets(RunConfig(name="trial", tensorboard=False))


_WRITE = """
import sys
from pathlib import Path
from partialkd.config import RunConfig
from partialkd.training.outlets import open_outlets
import socket
connect = socket.socket.connect
def told(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        print("CONNECTS", address, flush=True)
    return connect(self, address)
socket.socket.connect = told
run = RunConfig(name="trial", tensorboard=False, wandb="offline")
opened = open_outlets(Path(sys.argv[1]), "student", 0, run)
for outlet in opened:
    outlet.put({"phase": "student", "step": 1, "epoch": 0, "time": "", "loss": 2.5, "lr": float("nan")})
    outlet.close()
"""


@pytest.mark.skipif(find_spec("wandb") is None, reason="the package wandb is not installed")
def test_offline_it_writes_and_sends_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WRITE, tmp_path], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "WANDB_MODE": "online"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CONNECTS" not in done.stdout
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert written.stat().st_size > 0
