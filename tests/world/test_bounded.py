"""launch/bounded.sh ends a launcher that has no running ranks, and no other."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from helpers.jobs import ENVIRONMENT
from helpers.places import ROOT

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.mark.parametrize("rank", ["sleep 0.5", "kill -STOP $$"], ids=["ended", "stopped"])
def test_a_launcher_without_running_ranks_is_ended(rank: str) -> None:
    """Its child ends, or is stopped when nobody is left to miss it, and it waits, as torchrun may."""
    code = (
        "from partialkd.world.parent_death import die_with_launcher\n"
        "import os, subprocess, time\n"
        f"subprocess.Popen(['sh', '-c', {rank!r}], preexec_fn=die_with_launcher).wait()\n"
        "time.sleep(120)"
    )
    command = [str(ROOT / "launch" / "bounded.sh"), "2", sys.executable, "-c", code]
    environment = {**ENVIRONMENT, "TORCHELASTIC_RUN_ID": "x", "PYTHONPATH": str(ROOT)}
    got = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert got.returncode == -signal.SIGKILL
    assert got.stderr == "error: torchrun has had no running ranks for 2 s: killed\n"


def test_a_launcher_with_ranks_is_left_alone_and_its_status_kept() -> None:
    code = "import subprocess; subprocess.run(['sleep', '4']); raise SystemExit(3)"
    command = [str(ROOT / "launch" / "bounded.sh"), "2", sys.executable, "-c", code]
    assert subprocess.run(command, timeout=60, check=False).returncode == 3
