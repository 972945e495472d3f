"""Two hosts (network namespaces): a rank killed, then the link down and up; the run goes on to its end. Root only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.jobs import ENVIRONMENT, tree
from helpers.places import ROOT
from partialkd.config.load import parse_config, save_config

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def what_is_missing() -> str | None:
    """Why two hosts cannot be made here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2"
    made = subprocess.run(["ip", "netns", "add", "pkd-try"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", "pkd-try"], capture_output=True, check=False)
    return f"ip netns add fails: {made.stderr.strip()}" if made.returncode else None


def test_a_killed_rank_and_a_broken_link(tmp_path: Path) -> None:
    missing = what_is_missing()
    if missing:
        pytest.skip(missing)
    settings = tree(tmp_path)
    del settings["alone"]
    settings["run"] = {**settings["run"], "checkpoint_every": 1, "log_every": 1}
    settings["dist"] = {"timeout_s": 15.0}
    settings["teacher"]["train"]["epochs"] = 10
    save_config(parse_config(settings), tmp_path / "run.toml")
    script = [str(ROOT / "tests" / "world" / "two_hosts.sh"), str(tmp_path), str(tmp_path / "run.toml"), sys.executable]
    got = subprocess.run(script, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)
    assert got.returncode == 0, got.stdout + got.stderr + (tmp_path / "b.log").read_text()
    killed, down_a, down_b = (line for line in got.stdout.splitlines() if " says: " in line)
    assert "no report from rank " in killed
    assert ", gone)" in killed
    assert "a collective failed" in down_a
    assert "does not answer: its machine, its launcher or the link is down" in down_b
    lines = [json.loads(line) for line in (tmp_path / "runs" / "trial" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["phase"] == "teacher"] == list(range(1, 41))
    assert (tmp_path / "runs" / "trial" / "result.json").exists()
