"""benchmarks/checkpoint_cost.py, small: the object that it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.places import ROOT

SCRIPT = ROOT / "benchmarks" / "checkpoint_cost.py"
SMALL = "--width 0.25 --classes 500 --dim 32 --batch 2 --every 2 --rounds 1"
KINDS = {"none", "in the step", "in the background"}


@pytest.mark.slow
def test_what_it_measures(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *SMALL.split(), "--json", "--folder", str(tmp_path)]
    got = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert got.keys() >= {"device", "torch", "python", "commit", "world_size", "classes", "dim", "every", "hidden"}
    assert set(got["seconds_a_step"]) == KINDS
    assert set(got["overhead"]) == set(got["stall_seconds"]) == KINDS - {"none"}
    assert all(seconds > 0 for seconds in (*got["seconds_a_step"].values(), *got["stall_seconds"].values()))
    assert got["checkpoint_bytes"] > 500 * 32 * 4 * 2  # the centres and their momentum at least
    assert list(tmp_path.iterdir()) == []
