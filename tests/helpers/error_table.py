"""The tables of docs/errors.md, "What each error means": what they quote, and whether an error says that.

Compared are our own words. Not compared: places in files, which hang on how images were encoded, and what a library
says behind ours, which changes with its version.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from helpers.places import ROOT

PAGE = ROOT / "docs" / "errors.md"
_ROW = re.compile(r"^\| (?P<what>.+?) \| `(?P<says>.+)` \| (?P<then>.+) \|$", re.MULTILINE)
_FOLDERS = re.compile(r"(?<![\w.])(set|in)/")  # in which the test puts its files
_LENGTHS = re.compile(r"(?<=byte )\d+|(?<=file of )\d+|(?<=record has only )\d+")
_LIBRARY = re.compile(
    r"(broken JPEG|broken image|be read|as weights|as ONNX|cannot load it|description|class id a line"
    r"|verification set|manifest|metrics|run\.toml): (.*)"
)
_OURS = re.compile(r"it holds objects that|the file (ends early|asks|uses|encodes)|numpy values|values are nested")


class Row(NamedTuple):
    """A line of a table."""

    says: str
    then: str  # "stops", or "stops, or goes on"


@cache
def rows() -> dict[str, Row]:
    """By what is wrong."""
    text = PAGE.read_text(encoding="utf-8").partition("\n## What each error means\n")[2]
    found = [(match["what"], Row(match["says"], match["then"])) for match in _ROW.finditer(text)]
    assert len(dict(found)) == len(found)
    return dict(found)


def says(row: Row, message: str, folder: Path) -> bool:
    """Whether the row quotes this message of a test that works in this folder."""
    text = " ".join(message.split()).replace(f"{folder}/", "").replace("`", "'")
    quoted = row.says.removesuffix(" ...")
    got = _compared(_FOLDERS.sub("", text))
    return got.startswith(_compared(quoted)) if quoted != row.says else got == _compared(quoted)


def _compared(text: str) -> str:
    kept = lambda match: match[0] if _OURS.match(match[2]) else f"{match[1]}: *"
    return _LIBRARY.sub(kept, _LENGTHS.sub("N", text))
