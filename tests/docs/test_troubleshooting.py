"""docs/troubleshooting.md: its messages are the program's, and the tests it names raise them."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from helpers.places import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^```\n(.*?)\n```\n\n`(tests/[\w/]+\.py)`(?:: `(\w+)`)?$", PAGE, re.MULTILINE | re.DOTALL)


def fragments(message: str) -> list[str]:
    """What stands between the parts that vary."""
    return [part for part in re.split(r"\.\.\.", message) if re.search(r"\w{2}", part)]


@cache
def strings(path: Path) -> str:
    """All string constants of a module, f-strings' parts among them, and neighbours joined."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return "\0".join(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_every_quotation_names_its_test() -> None:
    assert len(ENTRIES) == PAGE.count("\n```\n") / 2 >= 20


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry[0][:40])
def test_the_message_is_the_programs_and_tested(entry: tuple[str, str, str]) -> None:
    message, file, name = entry
    parts = fragments(message)
    assert parts
    ours = [strings(path) for path in (ROOT / "partialkd").rglob("*.py")]
    for part in parts:
        words = part.strip(" :;,")
        assert any(words in text for text in ours) or words in strings(ROOT / file), f"nobody says {words!r}"
    if name:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    cores = [part.strip(" :;,.()")[:18] for part in parts]
    looked_for = "\0".join(map(strings, [ROOT / file, *(ROOT / "tests" / "helpers").glob("*.py")])).replace("\\", "")
    assert name or any(core in looked_for for core in cores), f"{file} looks for none of {cores}"
