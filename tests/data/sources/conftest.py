"""Fixtures of more than one test file of sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.source_cases import write_part, write_plain, write_with_header


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder of three .rec files, the first with a header record, one with gaps between its keys."""
    write_part(tmp_path, "00", {1: (3, b"a"), 2: (0, b"b")}, header=True)
    write_part(tmp_path, "02", {9: (1, b"f")})
    write_part(tmp_path, "01", {1: (3, b"c"), 4: (3, b"d"), 5: (2, b"e")})
    return tmp_path


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """a: .rec, classes 0..9, images of 0, 0, 3, 2, 2, 2 behind a header; b: .rec of classes 1, 0, 1; c: a folder."""
    write_with_header(tmp_path / "a", [0, 0, 3, 2, 2, 2], (7.0, 9.0), identities=2)
    write_plain(tmp_path / "b", [1, 0, 1], classes=2)
    for path in ("anna/1.jpg", "anna/2.jpg", "bob lee/1.jpg", "cleo/1.jpg", "cleo/2.jpg"):
        (tmp_path / "c" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / path).write_bytes(path.encode())
    return tmp_path
