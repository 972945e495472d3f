"""Fixtures of reports."""

from __future__ import annotations

import pytest

from partialkd.report import plots


@pytest.fixture(autouse=True)
def few_drawings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest: only where it is looked at."""
    if "draws" not in request.fixturenames:
        monkeypatch.setattr(plots, "find_spec", lambda _: None)


@pytest.fixture
def draws() -> None:
    """Ask for drawings."""
