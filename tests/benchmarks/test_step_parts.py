"""benchmarks/step_parts.py, small: the object that it prints."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from helpers.places import ROOT

SMALL = "--pairs 3 --batch 8 --identities 6 --json"


@pytest.mark.slow
def test_what_it_measures() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "step_parts.py"), *SMALL.split()]
    got = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert got.keys() >= {"device", "torch", "commit", "pairs", "batch", "step_seconds", "direct", "apart"}
    low, high = got["ratio_interval"]
    assert low <= got["ratio"] <= high
    assert got["marks"] >= 2 * 6  # every part but what only several ranks have begins and ends
    assert 0 <= got["apart"] < 0.5
