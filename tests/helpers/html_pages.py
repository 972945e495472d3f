"""Pages of HTML, read as strictly as a browser is not."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

NASTY = '<script>alert(1)</script>"&\u202e$x_1$'


class Page(HTMLParser):
    """The tags of a page that are opened and closed in order, and its text."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def checked(text: str) -> Page:
    """A page that is whole, loads nothing, and says in words what it draws."""
    page = Page(text)
    assert not page.open
    assert not page.named("script")
    assert not re.search(r"(?:src|href|xlink:href)=\"(?!#|data:)", text)
    assert "url(http" not in text
    assert len(page.named("h1")) == len(page.named("main")) == 1
    assert all(one.get("aria-label") for one in page.named("svg"))
    assert all(one.get("alt") for one in page.named("img"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    names = [one["id"] for _, one in page.tags if "id" in one]
    assert len(names) == len(set(names))
    targets = {one["href"] for one in page.named("a")}
    assert targets <= {f"#{name}" for name in names}
    return page
