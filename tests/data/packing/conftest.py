"""Fixtures of more than one test file of packing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.prepare_cases import EVALUATED, TRAINING, write_pairs, write_tar


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    return {
        "images": write_tar(tmp_path / "train.tar.gz", TRAINING),
        "pairs_images": write_tar(tmp_path / "test.tar.gz", EVALUATED, prefix="./"),
        "pairs": write_pairs(tmp_path / "quiz.csv"),
    }
