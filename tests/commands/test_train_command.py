"""`launch/train.py` and `launch/local.sh`: a wrong configuration is said in a line, before any rank is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.places import ROOT
from partialkd.commands.train import main

WRONG = (
    ("student.lrr=0.1", "override student.lrr=0.1: unknown key, did you mean student.optimizer.lr?"),
    (
        "student.centres.sample_rate=1.5",
        "override student.centres.sample_rate=1.5: must be less than or equal to 1, got 1.5",
    ),
    ("absent.toml", "absent.toml: No such file or directory"),
)


@pytest.mark.parametrize(("argument", "said"), WRONG)
def test_what_is_wrong_is_one_line(argument: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([argument, "--check"])
    assert end.value.code == 2
    got = capsys.readouterr()
    assert got.err == f"error: {said}\n"
    assert got.out == ""


def test_how_many_ranks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for asked, ranks in (("3", "3\n"), ("", None)):
        monkeypatch.setenv("NPROC", asked)
        assert main(["--check"]) == 0
        out = capsys.readouterr().out
        assert out == ranks if ranks else int(out) >= 1
    monkeypatch.setenv("NPROC", "two")
    with pytest.raises(SystemExit):
        main(["--check"])
    assert "NPROC: must be a whole number of at least 1, got 'two'" in capsys.readouterr().err


def test_results_go_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, said in (("-", "must be a file"), (str(tmp_path / "absent" / "a.json"), "its folder must exist")):
        with pytest.raises(SystemExit) as end:
            main(["--json", place])
        assert end.value.code == 2
        assert said in capsys.readouterr().err


def test_two_files_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["a.toml", "b.toml"])
    assert "one CONFIG, got ['a.toml', 'b.toml']" in capsys.readouterr().err


def local(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [str(ROOT / "launch" / "local.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_no_rank_is_started_with_a_wrong_configuration() -> None:
    got = local("student.lrr=0.1")
    assert (got.returncode, got.stdout) == (2, "")
    assert got.stderr == f"error: {WRONG[0][1]}\n"


@pytest.mark.slow
def test_its_help_is_that_of_the_command() -> None:
    got = local("--help")
    assert got.returncode == 0
    assert got.stdout.startswith("usage: train.py ")
    assert "--check" in got.stdout
