"""benchmarks/centre_step.py: the object it prints, and that a step's extra memory does not grow with the classes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "centre_step.py"
KEYS = {
    "kind", "backend", "classes", "batch", "dim", "sample_rate", "seconds", "reference_seconds", "products_seconds",
    "peak_extra_bytes", "reference_peak_extra_bytes", "device", "torch", "python", "commit",
}  # fmt: skip


def centre_step(kind: str, classes: int, *more: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), "--kind", kind, "--classes", str(classes), "--runs", "1", "--json", *more]
    got = subprocess.run([*command, "--batch", "32", "--dim", "64"], capture_output=True, text=True, check=True)
    return json.loads(got.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"),
    [("fixed", []), ("ema", ["--store", "bf16"]), ("trainable", []), ("trainable", ["--sample-rate", "0.2"])],
)
def test_extra_memory_does_not_grow_with_the_classes(kind: str, more: list[str]) -> None:
    few, many = (centre_step(kind, classes, "--chunk-rows", "1024", *more) for classes in (10_000, 40_000))
    assert few.keys() >= KEYS
    assert all(few[key] > 0 for key in KEYS if key.endswith(("seconds", "bytes")))
    assert many["peak_extra_bytes"] <= 1.1 * few["peak_extra_bytes"]
    assert many["reference_peak_extra_bytes"] > 3 * few["reference_peak_extra_bytes"]  # the measure sees what grows


def test_unknown_backend_is_refused() -> None:
    got = subprocess.run(
        [sys.executable, str(SCRIPT), "--backend", "magic"], capture_output=True, text=True, check=False
    )
    assert got.returncode == 2
    assert "invalid choice: 'magic'" in got.stderr
