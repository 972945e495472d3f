"""Fixtures of more than one test file of sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.source_cases import write_part


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder of three .rec files, the first with a header record, one with gaps between its keys."""
    write_part(tmp_path, "00", {1: (3, b"a"), 2: (0, b"b")}, header=True)
    write_part(tmp_path, "02", {9: (1, b"f")})
    write_part(tmp_path, "01", {1: (3, b"c"), 4: (3, b"d"), 5: (2, b"e")})
    return tmp_path
