"""What a program says, where that goes, and that no outlet which fails ends the program."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from helpers.places import ROOT
from partialkd.errors import ConfigError, DataError, PartialKDWarning
from partialkd.world import messages
from partialkd.world.command import explained, say_error

RUN = {"cwd": ROOT, "text": True, "timeout": 60, "check": False}
# Says more than a pipe holds, on both streams, by `print` and by the logger, and is done.
TALK = """
import logging, sys, warnings
from pathlib import Path
from partialkd.world import messages
messages.begin()
log = logging.getLogger("partialkd.talk")
if sys.argv[1:]:
    messages.log_into(Path(sys.argv[1]))
for number in range(3000):
    log.info(f"line {number} of many")
    print("a library's line")
    if number % 1000 == 0:
        log.warning(f"warning {number}")
Path(sys.argv[2]).write_text("done")
"""


def _talk(tmp_path: Path, shell: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """A shell command in which $TALK is the program above; and its log file."""
    (tmp_path / "talk.py").write_text(TALK)
    talk = f"{sys.executable} {tmp_path}/talk.py {tmp_path}/logs/rank_0.log {tmp_path}/done"
    script = f"set -o pipefail; {shell.replace('$TALK', talk)}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    got = subprocess.run(["bash", "-c", script], capture_output=True, env=environment, **RUN)  # type: ignore[call-overload]
    assert (tmp_path / "done").read_text() == "done", got.stderr
    return got, (tmp_path / "logs" / "rank_0.log").read_text()


def test_a_reader_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    got, log = _talk(tmp_path, "$TALK | head -n 2")
    assert got.returncode == 0, got.stderr
    assert len(got.stdout.splitlines()) == 2
    lost = [line for line in got.stderr.splitlines() if "standard output" in line]
    assert len(lost) == 1
    assert lost[0].endswith("the standard output cannot be written to any more (Broken pipe); this goes on without it")
    assert "Traceback" not in got.stderr
    assert "Exception ignored" not in got.stderr
    assert "line 2999 of many" in log
    assert "the standard output cannot be written to" in log


def test_a_log_on_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    got, log = _talk(tmp_path, "$TALK > /dev/full 2>&1")
    assert got.returncode == 0
    assert "line 2999 of many" in log
    for what in ("standard output", "error output"):
        assert log.count(f"the {what} cannot be written to any more (No space left on device)") == 1


def test_streams_that_were_never_there_end_nothing(tmp_path: Path) -> None:
    got, log = _talk(tmp_path, "$TALK >&- 2>&-")
    assert got.returncode == 0
    assert "line 2999 of many" in log


def test_a_log_file_on_a_full_disk_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages.begin()
    messages.log_into(Path("/dev/full"))
    for number in range(3):
        logging.getLogger("partialkd.x").info(f"line {number}")
    got = capsys.readouterr()
    assert got.out.count("line") == 3
    assert got.err.count("/dev/full: cannot be written to any more (No space left on device)") == 1


def test_a_log_that_cannot_be_made_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages.begin()
    (tmp_path / "file").touch()
    messages.log_into(tmp_path / "file" / "rank_0.log")
    assert "rank_0.log: no log can be kept there (File exists); the run goes on" in capsys.readouterr().err


def test_what_was_said_before_there_was_a_file_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a rank that is not the first: on the screen only what is wrong, in its file all."""
    monkeypatch.setenv("RANK", "1")
    messages.begin()
    log = logging.getLogger("partialkd.x")
    log.info("early")
    messages.log_into(tmp_path / "one.log")
    log.warning("late\nand \x1b[2J foreign")
    log.debug("never")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        messages.begin()
        warnings.warn_explicit("soon", FutureWarning, "/lib/python/site-packages/torch/x.py", 12)
        warnings.warn_explicit("ours", PartialKDWarning, "/usr/lib/python3/contextlib.py", 12)
    text = (tmp_path / "one.log").read_text()
    assert [line[20:] for line in text.splitlines()] == [
        "early",
        r"warning: late\nand \x1b[2J foreign",
        "/lib/python/site-packages/torch/x.py, line 12: FutureWarning: soon",
        "warning: ours",
    ]
    got = capsys.readouterr()
    assert got.out == ""
    assert [line[20:] for line in got.err.splitlines()] == [r"warning: late\nand \x1b[2J foreign", "warning: ours"]
    messages.log_into(tmp_path / "two.log")
    assert "early" not in (tmp_path / "two.log").read_text()


def test_the_level_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    messages.begin()
    messages.set_level("warning")
    logging.getLogger("partialkd.x").info("how it goes")
    messages.output("the table")
    messages.set_level("info")
    assert capsys.readouterr().out == "the table\n"


def test_errors_are_lines_and_faults_have_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    messages.begin()
    say_error(ConfigError("a.toml: one", "a.toml: two\nof it"))
    say_error(PermissionError(13, "Permission denied", "runs/x\n/config.toml"), "rank 1 of 2")
    assert capsys.readouterr().err == (
        "error: a.toml: one\na.toml: two\\nof it\nerror: rank 1 of 2: runs/x\\n/config.toml: Permission denied\n"
    )
    try:
        raise KeyError("a fault")
    except KeyError as error:
        say_error(error, "rank 1 of 2")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: rank 1 of 2 failed, which is a fault of the program:"
    assert said[-1] == "KeyError: 'a fault'"


def test_errors_of_the_system_name_what_they_are_about() -> None:
    assert explained(OSError(28, "No space left on device", "a", None, "b")) == ["a: b: No space left on device"]
    assert explained(OSError(5, "Input/output error"), "rank 0 of 2") == ["rank 0 of 2: in the job: Input/output error"]
    assert explained(MemoryError(), "rank 1 of 2") == ["rank 1 of 2: out of memory in the job: no memory left"]
    assert explained(DataError("x")) == ["x"]
    assert explained(ValueError("x")) is None


ASCII = """
from prettytable import PrettyTable
from partialkd.world import messages
messages.begin()
table = PrettyTable(["set", "\\u017e"])
table.add_row(["n\\u00e9e \\U0001f600", 1])
messages.output(*table.get_string().splitlines())
"""


def test_a_table_of_any_letters_is_printed_where_there_is_only_ascii() -> None:
    got = subprocess.run(
        [sys.executable, "-c", ASCII], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, **RUN
    )  # type: ignore[call-overload]
    assert got.returncode == 0, got.stderr
    assert r"n\xe9e \U0001f600" in got.stdout


IMPORTING = """
from partialkd.world.command import command

def body():
    print("begun", flush=True)
    import time
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        raise ImportError("a library that makes something else of it")
    return 0

raise SystemExit(command(body))
"""


def test_an_interrupted_start_is_one_line() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "error: interrupted\n"
    assert process.returncode == 130
