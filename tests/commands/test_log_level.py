"""`--log-level` of every command: one parser for all, and for training the configuration's own key."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator

import pytest

from helpers.places import ROOT
from partialkd.commands import make_bin
from partialkd.world import messages
from partialkd.world.command import LEVELS

COMMANDS = sorted(path.stem for path in (ROOT / "launch").glob("*.py"))


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """Put back what was."""
    before = messages.ROOT.level
    yield
    messages.ROOT.setLevel(before)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_level(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(f"partialkd.commands.{command}").main
    for given in LEVELS:
        with pytest.raises(SystemExit) as end:
            main(["--log-level", given, "--help"])
        assert end.value.code == 0
        assert logging.getLevelName(messages.ROOT.level).lower() == given
    with pytest.raises(SystemExit):
        main(["--log-level", "loud"])
    assert "invalid choice: 'loud'" in capsys.readouterr().err


def test_there_are_commands() -> None:
    assert {"train", "plan", "evaluate", "export", "embed", "pack", "make_bin"} <= set(COMMANDS)


def test_it_may_stand_behind_a_direction(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_bin.main(["extract", "a.bin", "--log-level", "error", "--help"])
    assert messages.ROOT.level == logging.ERROR
    assert "--log-level" in capsys.readouterr().out


def test_it_is_the_level_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from partialkd.commands import train

    asked: list[str] = []

    def run_job(config: object, *_: object) -> None:
        asked.append(config.run.log_level)  # type: ignore[attr-defined]

    monkeypatch.setattr(train, "run_job", run_job)
    monkeypatch.setattr(train, "launched", lambda _, job, __: job(None) or 0)
    assert train.main(["--log-level", "warning"]) == 0
    assert train.main([]) == 0
    assert asked == ["warning", "info"]
