"""The program `partialkd`: its commands, their help with examples that are right, their status, their folder."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.places import ROOT
from partialkd import __version__
from partialkd.commands import console
from partialkd.commands.console import COMMANDS, main
from partialkd.commands.results import add_json, show
from partialkd.world.command import CommandParser


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommandParser, "program", None)
    monkeypatch.setattr(console, "command", lambda body, progress: body())  # leave this process's streams alone


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_it_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +{re.escape(entry.does)}$", listed, re.M) for name, entry in COMMANDS.items())
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: partialkd COMMAND"),
        (["evalute"], "error: no command evalute; did you mean evaluate?"),
        (["\x1b[2J"], "error: no command \\x1b[2J; partialkd --help lists them"),
    ],
)
def test_wrong_use_is_status_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    got = capsys.readouterr()
    assert got.err.startswith(said)
    assert got.out == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_wrong_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--no-such-option"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"usage: partialkd {name}")


class _Read(Exception):
    """An example's command line was read to its end."""


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_right(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = help_of(name, capsys)
    examples = shown.split("examples:\n")[1].splitlines()
    assert len(examples) >= 2
    read = argparse.ArgumentParser.parse_known_args

    def parse(self: argparse.ArgumentParser, *given: object) -> object:
        read(self, *given)  # type: ignore[call-overload]
        raise _Read

    for method in ("parse_args", "parse_intermixed_args"):
        whole = getattr(argparse.ArgumentParser, method)

        def stop(self: argparse.ArgumentParser, given: list[str], whole=whole) -> None:  # type: ignore[no-untyped-def]
            whole(self, given)
            raise _Read

        monkeypatch.setattr(CommandParser, method, stop, raising=False)
    for example in examples:
        words = shlex.split(example)
        words = words[words.index("partialkd") + 1 :]
        assert words[0] == name
        with pytest.raises(_Read):
            main(words)


@pytest.mark.parametrize("name", COMMANDS)
def test_results_are_there_for_programs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(name, capsys)
    below = {"make_bin": "build", "import_arcface": "config"}
    if name in below:
        with pytest.raises(SystemExit):
            main([name, below[name], "--help"])
        text = capsys.readouterr().out
    assert "--json FILE" in text


def test_the_list_is_there_at_once() -> None:
    """Nothing slow is imported for it, and a command's module only when it is called."""
    code = "import sys; from partialkd.commands.console import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    assert "'partialkd.commands.console'" in loaded
    for slow in ("torch", "numpy", "pydantic", "partialkd.config", "partialkd.commands.train"):
        assert f"'{slow}'" not in loaded


@pytest.mark.slow
def test_it_works_from_any_folder(tmp_path: Path) -> None:
    """Paths are those of the folder where it is called; the status is the command's."""
    program = [sys.executable, "-m", "partialkd"]
    plan = [
        "plan",
        str(ROOT / "configs" / "webface42m_adadistill_8gpu.toml"),
        "--identities",
        "2M",
        "--json",
        "plan.json",
    ]
    done = subprocess.run([*program, *plan], cwd=tmp_path, capture_output=True, text=True, check=False)
    found = json.loads((tmp_path / "plan.json").read_text())
    assert done.returncode == (0 if found["fits"] else 1)
    assert found["phases"]["student"]["identities"] == 2_000_000
    assert "memory of a rank" in done.stdout


def test_results_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_json(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--json", str(tmp_path / "absent" / "a.json")])
    assert "its folder must exist and be writable" in capsys.readouterr().err
    options = parser.parse_args(["--json", "-"])
    show(options.json, {"at": Path("a"), "n": 1}, "a line")
    assert json.loads(capsys.readouterr().out) == {"at": "a", "n": 1}
    show(str(tmp_path / "a.json"), {"at": Path("a")}, "a line")
    assert capsys.readouterr().out == "a line\n"
    assert json.loads((tmp_path / "a.json").read_text()) == {"at": "a"}
