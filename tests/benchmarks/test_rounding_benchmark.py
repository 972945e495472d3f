"""benchmarks/rounding.py, small: what the tables of docs/centres.md are made of."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from helpers.places import ROOT

SCRIPT = ROOT / "benchmarks" / "rounding.py"


def test_every_store_and_scale_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", ["rounding.py", "--json", "--out", str(tmp_path / "result.json")])
    script = runpy.run_path(str(SCRIPT))
    script["main"].__globals__.update(WALKS=((20, 1e-2),), ROWS=5)
    script["main"]()
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "result.json").read_text())
    ways = {(one["store"], one["rounding"]): one["way"] for one in result["stores"]}
    assert len(ways) == 4
    assert ways["bf16", "stochastic"] == pytest.approx(1, abs=0.05)
    errors = {(one["scale"], one["products"]): one["gradient"] for one in result["products"]}
    assert len(errors) == 6
    assert max(errors[scale, "fp32"] for scale in (30.0, 64.0, 128.0)) < 1e-5
    assert max(errors[scale, "bf16"] for scale in (30.0, 64.0, 128.0)) < 1e-2
