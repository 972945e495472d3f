"""Fixtures of more than one test file of loaders."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.loader_cases import as_png, pack, picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An InsightFace folder with header and identity records; some PNG among the JPEG."""
    return pack(
        tmp_path_factory.mktemp("loaders") / "set", lambda n, image: as_png(picture(n)) if n % 7 == 3 else image
    )
