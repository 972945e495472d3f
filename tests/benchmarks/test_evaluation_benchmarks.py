"""The benchmarks of evaluation run, in small."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.places import ROOT


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    sys.modules.pop("evaluation_scale", None)


@pytest.mark.parametrize(
    ("case", "scale"), [("templates", 0.01), ("search", 0.01), ("pairs", 0.02), ("distractors", 0.05)]
)
def test_the_scale_of_published_sets(case: str, scale: float, tmp_path: Path) -> None:
    import evaluation_scale

    found = evaluation_scale.CASES[case](scale, tmp_path)
    assert found["seconds"] > 0
