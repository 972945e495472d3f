"""Being told to stop by a terminal, or not; and the command that goes on afterwards."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.jobs import tree
from partialkd.commands.train import main
from partialkd.config import DistConfig
from partialkd.config.load import parse_config, save_config
from partialkd.errors import Preempted
from partialkd.storage.launcher_notes import NOTES, STOPPED_NOTE, note_mapped, shrunk, with_options
from partialkd.world.launch import STOPPED, command_again, launched
from partialkd.world.stop_signals import FROM_TERMINALS, SIGNALS, StopSignals
from partialkd.world.world import World


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Signals as they were."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_is_heard_and_only_noted(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)
    stop = StopSignals()
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    assert stop.asked


@pytest.mark.parametrize("number", FROM_TERMINALS)
def test_what_was_ignored_at_the_start_stays_so(number: signal.Signals) -> None:
    """As nohup, and a shell for a job in the background, have it."""
    signal.signal(number, signal.SIG_IGN)
    stop = StopSignals()
    os.kill(os.getpid(), number)
    assert not stop.asked
    stop.forget()
    assert signal.getsignal(number) is signal.SIG_IGN


def test_sigterm_is_heard_though_it_was_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop = StopSignals()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("a.py x.toml", "a.py x.toml --resume auto"),
        ("a.py --resume never x.toml", "a.py x.toml --resume auto"),
        ("a.py x.toml --resume=runs/a/step_3 b=1", "a.py x.toml b=1 --resume auto"),
        ("a.py --resume auto", "a.py --resume auto"),
    ],
)
def test_the_command_that_goes_on(words: str, wanted: str) -> None:
    assert " ".join(with_options(words.split(), ("--resume", "auto"))) == wanted


def _stopped(_: World) -> None:
    raise Preempted("student: stopped and saved at step 7")


def test_a_stopped_process_ends_with_the_command_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["launch/train.py", "my run.toml", "--resume", "never"])
    assert launched(DistConfig(device="cpu"), _stopped, ("--resume", "auto")) == STOPPED
    first, last = capsys.readouterr().err.splitlines()
    assert first.endswith("warning: student: stopped and saved at step 7")
    assert last == f"to go on: {sys.executable} launch/train.py 'my run.toml' --resume auto"
    monkeypatch.setenv(NOTES, str(tmp_path))  # of a launcher, which says it last
    assert launched(DistConfig(device="cpu"), _stopped, ("--resume", "auto")) == STOPPED
    assert "to go on" not in capsys.readouterr().err
    assert (tmp_path / STOPPED_NOTE).read_text() == "--resume auto"


def test_under_torchrun_the_command_is_that_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    assert Path(parent[0].decode()).name in command_again(("--resume", "auto"))
    assert command_again(("--resume", "auto")).endswith(" --resume auto")


def test_files_that_were_cut_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("whole", "cut", "gone", "grown")]
    monkeypatch.setenv(NOTES, str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    for path in paths:
        path.write_bytes(bytes(10))
        note_mapped(path)
        note_mapped(path)
    os.truncate(paths[1], 4)
    paths[2].unlink()
    os.truncate(paths[3], 40)
    mapped = "had 10 bytes when it was mapped"
    assert shrunk(tmp_path, 3) == f"{paths[1]} {mapped}, has 4 now; {paths[2]} {mapped}, is gone"
    assert shrunk(tmp_path, 0) == ""


def test_an_unwritable_run_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is made."""
    (tmp_path / "file").touch()
    settings = tree(tmp_path)
    settings["run"]["folder"] = str(tmp_path / "file" / "runs")
    settings["dist"] = {"device": "cpu"}
    save_config(parse_config(settings), tmp_path / "run.toml")
    assert main([str(tmp_path / "run.toml")]) == 1
    said = capsys.readouterr().err
    assert said == f"error: {tmp_path / 'file' / 'runs'}: cannot be written: Not a directory\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run.toml"]
