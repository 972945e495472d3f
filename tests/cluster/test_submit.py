"""`partialkd submit`: what it asks of Slurm, what it refuses; tests/cluster/test_slurm_jobs.py has real jobs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from helpers.places import ROOT
from partialkd.cluster.slurm import AND, LEAD_S, SCRIPT, checked_time, parse_seeds
from partialkd.commands.submit import main
from partialkd.errors import ConfigError

CONFIG = str(ROOT / "configs" / "methods" / "alone.toml")
OTHER = str(ROOT / "configs" / "methods" / "cosface.toml")


def facts(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["--dry-run", "--json", "-", *words]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_one_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARTIALKD_CONTAINER", raising=False)
    monkeypatch.delenv("PARTIALKD_ROOT", raising=False)
    asked = facts(
        capsys, CONFIG, "run.name=first", "--nodes", "2", "--gpus", "4", "--time", "90", "--", "--partition=a"
    )
    words = asked["command"]
    options, script = words[: words.index(str(SCRIPT))], words[words.index(str(SCRIPT)) + 1 :]
    assert {"--nodes=2", "--gpus-per-node=4", "--cpus-per-task=32", "--time=90", "--job-name=first"} <= set(options)
    assert {"--partition=a", "--output=slurm-%j.log"} <= set(options)
    assert not any("--array" in word for word in options)
    assert script == [CONFIG, "run.name=first"]
    assert asked["environment"]["PARTIALKD_ROOT"] == str(ROOT)
    assert asked["ranks"] == 8


def test_seeds_and_methods_are_an_array(capsys: pytest.CaptureFixture[str]) -> None:
    asked = facts(capsys, CONFIG, OTHER, "--gpus", "0", "--seeds", "0-1,7", "--resume", "never")
    words = asked["command"]
    script = words[words.index(str(SCRIPT)) + 1 :]
    assert "--array=0-5" in words
    assert "--output=slurm-%A_%a.log" in words
    assert script.count(AND) == 5
    assert script[: script.index(AND)] == [CONFIG, "run.seed=0", "run.name=alone-seed0", "--resume", "never"]
    assert asked["runs"] == [f"{name}-seed{seed}" for name in ("alone", "cosface") for seed in (0, 1, 7)]
    assert asked["environment"]["RANKS_PER_NODE"] == "2"


@pytest.mark.parametrize("task", [0, 1, 2])
def test_the_batch_script_takes_its_tasks_command_line(task: int, tmp_path: Path) -> None:
    """The part of the script before anything is looked up in Slurm, run as it stands."""
    text = SCRIPT.read_text()
    part = text[text.index("if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]") : text.index("join_s=300")] + '\nprintf "%s\\n" "$@"'
    given = ["a.toml", "run.name=x y", AND, "b.toml", AND, "c.toml", "--resume", "never"]
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
    done = subprocess.run(
        ["bash", "-c", part, "x", *given], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [["a.toml", "run.name=x y"], ["b.toml"], ["c.toml", "--resume", "never"]][task]
    environment["SLURM_ARRAY_TASK_ID"] = "3"
    done = subprocess.run(
        ["bash", "-c", part, "x", *given], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "error: no command line for task 3 of the array\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["student.lrr=1"], "unknown key"),
        (["--nodes", "7"], "global_batch must be divisible by accumulation x world size"),
        (["--time", "10"], "--time must be more than 10 minutes"),
        (["--time", "soon"], "--time must be like"),
        (["--logs", "absent"], "--logs absent: must be a folder that can be written to"),
        ([CONFIG], "run.name: .* is the folder of .* too"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_submitted(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([CONFIG, "--gpus", "1", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(said, error)


def test_without_slurm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partialkd.cluster.slurm.shutil.which", lambda _: None)
    with pytest.raises(SystemExit) as end:
        main([CONFIG, "--gpus", "1"])
    assert end.value.code == 2
    assert "sbatch: not found: this is no machine that submits to Slurm" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "a", "4-0", "0-", "1,,2", "-1", "0-99999"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="must be numbers like"):
        parse_seeds(text)


def test_seeds() -> None:
    assert parse_seeds("0-2,2,9") == [0, 1, 2, 9]


@pytest.mark.parametrize("text", ["11", "10:01", "0:10:01", "0-1", "1-00:00:00", "24:00:00"])
def test_times(text: str) -> None:
    assert checked_time(text) == text


@pytest.mark.parametrize("text", ["10", "10:00", "0:10:00", "0-0:10", "1d", "-5"])
def test_times_in_which_nothing_fits(text: str) -> None:
    with pytest.raises(ConfigError, match="--time must be"):
        checked_time(text)


def test_the_lead_is_the_scripts() -> None:
    assert f"#SBATCH --signal=B:USR1@{LEAD_S}" in SCRIPT.read_text()
