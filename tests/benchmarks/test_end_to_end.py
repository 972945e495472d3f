"""benchmarks/end_to_end.py: both ways in one run, and the object it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.places import ROOT

SCRIPT = ROOT / "benchmarks" / "end_to_end.py"
SMALL = ["--width", "0.25", "--dim", "64", "--size", "32", "--batch", "16", "--classes", "50", "--steps", "1"]


@pytest.mark.slow
@pytest.mark.distributed
def test_live_and_cached_are_measured_in_one_run(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *SMALL, "--runs", "2", "--json", "--out", str(tmp_path / "result.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    got = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert got.returncode == 0, got.stderr
    result = json.loads(got.stdout)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    live, cached = result["seconds"]["live"], result["seconds"]["cached"]
    for parts in (live, cached):
        assert parts["student"] > 0
        assert parts["centres"] > 0
        assert parts["loader"] > 0
        assert parts["step"] > parts["student"]
    assert live["teacher"] > 0
    assert cached["teacher"] == 0  # no network is there to be asked
    steps = result["step_seconds"]
    for name in ("live", "cached"):
        assert result["images_per_second"][name] == pytest.approx(16 / steps[name])
        assert steps[name] != result["seconds"][name]["step"]  # which has clocks within
    assert result["speedup"] == pytest.approx(steps["live"] / steps["cached"])
    assert result["cache_bytes_per_record"] == 2 * 64 * 2
    assert result["cache_seconds_per_record"] > 0
    assert {"device", "torch", "python", "commit"} <= result.keys()
