"""The documentation site is built without a warning, loads nothing from elsewhere, and holds every key."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.places import ROOT
from partialkd.config.keys import fields_of

_LOADED = re.compile(
    r"<(?:link|script|img|iframe|source)\b[^>]*?(?:href|src)=\"([^\"]+)\"|url\((?:['\"]?)(https?:[^)]+)\)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-E", "-c", "docs/site", "-b", "html", "docs", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_in_it(site: Path) -> None:
    """And is reached from the first one: a page that no contents name is a warning."""
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / page.with_suffix(".html").name).is_file()


@pytest.mark.slow
def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        loaded = ["".join(found) for found in _LOADED.findall(file.read_text(encoding="utf-8"))]
        assert not [one for one in loaded if one.startswith(("http", "//"))], file.name


@pytest.mark.slow
def test_equations_are_drawn_by_the_browser_itself(site: Path) -> None:
    page = (site / "equations.html").read_text(encoding="utf-8")
    assert page.count("<math") > 40
    assert "\\frac" not in page
    assert "$" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


@pytest.mark.slow
def test_the_reference_holds_every_key(site: Path) -> None:
    page = (site / "generated" / "configuration.html").read_text(encoding="utf-8")
    missing = [key for key, _ in fields_of() if f'<span class="pre">{key.rpartition(".")[2]}</span>' not in page]
    assert not missing


@pytest.mark.slow
def test_the_reference_says_what_the_code_says(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "generated" / "configuration.html").read_text(encoding="utf-8"))
    assert re.search(r"checkpoint_every\s+integer &gt;= 0\s+1000\s+free\s+optimiser steps; 0: only at the end", text)
    assert "&lt;folder&gt;/&lt;name&gt;" in text
