"""docs/troubleshooting.md: each message is raised here as it is quoted, or, of several ranks, by the test it names."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from helpers.places import ROOT
from helpers.said_messages import TRIGGERS
from partialkd.world.messages import begin

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


@pytest.mark.slow
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


OF_SEVERAL_PROCESSES = {"to go on: ...", "...; no report from ..."}


def trigger_of(message: str) -> str | None:
    found = [words for words in TRIGGERS if words in message]
    assert len(found) <= 1, f"{message!r} has several triggers: {found}"
    return found[0] if found else None


def test_every_message_is_raised_for_real() -> None:
    messages = [message for message, *_ in ENTRIES]
    assert {message for message in messages if trigger_of(message) is None} == OF_SEVERAL_PROCESSES
    assert {trigger_of(message) for message in messages} - {None} == TRIGGERS.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("message", [m for m, *_ in ENTRIES if trigger_of(m)], ids=lambda message: message[:40])
def test_a_message_is_said_as_it_is_quoted(message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin()
    words = trigger_of(message)
    assert words is not None
    try:
        said = TRIGGERS[words](tmp_path) or ""
    except Exception as error:
        said = str(error)
    said += capsys.readouterr().err
    quoted = ".*".join(re.escape(part) for part in message.strip().split("..."))
    assert re.search(quoted, said, re.DOTALL), f"quoted: {message}\nsaid: {said}"
