"""Pages for people: links lead somewhere, the first page is short, and one alone says what no GPU has run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.places import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?!https?:)([^)\s]+)\)")
_NOT_ON_A_GPU = re.compile(
    r"not (?:been )?run on a GPU|never (?:been )?run on a GPU|has run on a GPU|on a GPU yet|with a GPU yet|ran on one\b"
    r"|run on CUDA|CUDA\W* have not been run|without a GPU\.$|there was no GPU",
    re.IGNORECASE | re.MULTILINE,
)


def words(*pages: str) -> int:
    return sum(len((ROOT / page).read_text(encoding="utf-8").split()) for page in pages)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_first_page_is_short() -> None:
    assert words("README.md") <= 1000
    assert words("docs/data.md", "docs/centres.md") <= 8000


def test_one_page_says_what_no_gpu_has_run() -> None:
    code = [path for part in ("partialkd", "launch", "configs") for path in (ROOT / part).rglob("*.*")]
    texts = [path for path in code if path.suffix in (".py", ".toml", ".sh")] + PAGES
    others = [path for path in texts if path.name not in ("gpu.md", "README.md")]
    found = [path.name for path in others if _NOT_ON_A_GPU.search(path.read_text(encoding="utf-8"))]
    assert not found, "docs/gpu.md says it for all"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_can_be_read_as_they_are(page: Path) -> None:
    """Prose ends its lines; tables and quoted messages cannot."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    long = [line[:60] for line in text.splitlines() if len(line) > 140 and not line.startswith("|")]
    assert not long
