"""benchmarks/edge.py, small: the latency card that it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.edge_cases import CONFIG, network, write_pictures, write_set
from helpers.places import ROOT
from partialkd.models.saved import save_model


@pytest.mark.slow
def test_a_card_has_every_target_on_every_set(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", network(), CONFIG, 32)
    write_set(tmp_path / "set")
    write_set(tmp_path / "other")
    write_pictures(tmp_path / "pictures")
    options = ["--to", "onnx,opencv", "--set", str(tmp_path / "set"), str(tmp_path / "other"), "--runs", "3"]
    command = [sys.executable, ROOT / "benchmarks" / "edge.py", tmp_path / "m.safetensors", *options]
    command += ["--calibrate", tmp_path / "pictures", "--out", tmp_path / "card.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "card.json").read_text())
    assert card.keys() >= {"device", "commit", "parameters", "multiply_adds", "pictures", "left_out"}
    assert card["of_the_network"].keys() == {"set", "other"}
    assert card["torch"] == torch.__version__
    assert card["targets"].keys() == {"onnx", "opencv", "torch"}
    for name in ("onnx", "opencv"):
        one = card["targets"][name]
        assert one["file_bytes"] > 0
        assert one["peak_kib"] > 0
        assert all(one["sets"][found]["holds"] for found in ("set", "other"))
    for times in card["targets"].values():
        assert all(0 < times[f"ms_{n}_threads"]["median"] <= times[f"ms_{n}_threads"]["p95"] for n in (1, 2))
