"""The benchmark of layouts: its variants are the same network, and its ratios those of pairs."""

from __future__ import annotations

import argparse
import sys

import pytest

from helpers.places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import network_layouts


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_variants_are_the_same_network() -> None:
    args = argparse.Namespace(batch=2, runs=1, compile=False, onnx=False)
    found = network_layouts.measured("mobilefacenet_gdc", args)
    assert found["embedding"].keys() == found["training"].keys() == {"plain", "channels_last"}
    assert found["difference"]["channels_last"] < 1e-4
    assert found["embedding"]["plain"]["seconds"] > 0


def test_ratios_are_those_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seconds 1 and 2, then 2 and 3, and 4 and 12."""
    ends = iter([0, 1, 0, 2, 0, 2, 0, 3, 0, 4, 0, 12])
    monkeypatch.setattr(network_layouts.time, "process_time", lambda: float(next(ends)))
    found = network_layouts.paired({"plain": lambda: None, "other": lambda: None}, 3)
    assert found["other"] == {"of plain": 2.0, "least": 1.5, "most": 3.0}
    assert found["plain"] == {"seconds": 2.0}
