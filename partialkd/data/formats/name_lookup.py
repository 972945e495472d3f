"""Find the names that a list of people gives among those that a data set has.

A name is found if it is there letter by letter; else if exactly one name of the data set differs from it in Unicode
form (an accent as a letter of its own, as some systems write file names), in capital letters, in a slash at its end or
in the ending of an image file only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from partialkd.data.formats.image_tree import IMAGE_SUFFIXES


def plain_form(name: str) -> str:
    """Reduce a name to what `NameLookup` compares."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip().rstrip("/")
    return next((text.removesuffix(suffix) for suffix in IMAGE_SUFFIXES if text.endswith(suffix)), text)


class NameLookup:
    """Looks up names of a data set one after the other; counts what was asked for and what was found."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._by_form: dict[str, list[str]] | None = None  # made when a name is not there letter by letter
        self.listed = self.found = self.otherwise_written = 0
        self.first_missing: str | None = None

    def find(self, name: str) -> str | None:
        """Find the data set's name that is meant, None if it has none or several."""
        self.listed += 1
        there = name if name in self._names else self._only(name)
        self.found += there is not None
        self.otherwise_written += there is not None and there != name
        if there is None and self.first_missing is None:
            self.first_missing = name
        return there

    def _only(self, name: str) -> str | None:
        if self._by_form is None:
            self._by_form = {}
            for known in self._names:
                self._by_form.setdefault(plain_form(known), []).append(known)
        meant = self._by_form.get(plain_form(name), [])
        return meant[0] if len(meant) == 1 else None

    def counts(self) -> str:
        """Say how many names were found."""
        others = f" ({self.otherwise_written} written otherwise)" if self.otherwise_written else ""
        return f"{self.found} of {self.listed} names found{others}"

    def summary(self, path: Path) -> str:
        """Say in one line what became of a list."""
        missing = f", not {self.first_missing!r:.80}" if self.first_missing is not None else ""
        return f"{path}: {self.counts()}{missing}"
