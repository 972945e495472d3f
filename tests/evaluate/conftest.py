"""Fixtures of more than one test file of evaluation."""

from __future__ import annotations

import pytest

from partialkd.world.world import free_port


@pytest.fixture
def own_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun would set, and gone afterwards."""
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
