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
from partialkd.cluster.slurm import AND, COPIES, LEAD_S, SCRIPT, checked_time, parse_seeds, submit, tasks_of
from partialkd.commands.submit import main
from partialkd.config.load import load_config, save_config
from partialkd.errors import ConfigError
from partialkd.run.folder import run_folder

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
    assert script == asked["configurations"]
    assert re.fullmatch(rf"runs/methods/{COPIES}/first-[0-9a-f]{{12}}\.toml", script[0])
    assert not Path(script[0]).exists()
    assert asked["environment"]["PARTIALKD_ROOT"] == str(ROOT)
    assert asked["ranks"] == 8


def test_seeds_and_methods_are_an_array(capsys: pytest.CaptureFixture[str]) -> None:
    asked = facts(capsys, CONFIG, OTHER, "--gpus", "0", "--seeds", "0-1,7", "--resume", "never")
    words = asked["command"]
    script = words[words.index(str(SCRIPT)) + 1 :]
    assert "--array=0-5" in words
    assert "--output=slurm-%A_%a.log" in words
    assert script.count(AND) == 5
    assert script[: script.index(AND)] == [asked["configurations"][0], "--resume", "never"]
    assert len(set(asked["configurations"])) == 6
    assert asked["runs"] == [f"{name}-seed{seed}" for name in ("alone", "cosface") for seed in (0, 1, 7)]
    assert asked["environment"]["RANKS_PER_NODE"] == "2"


def test_a_job_trains_what_was_submitted(tmp_path: Path) -> None:
    """Whatever becomes of the file, or is submitted later under the same name, while the job waits."""
    path = tmp_path / "run.toml"
    save_config(load_config(CONFIG, [f"run.folder={tmp_path}/runs"]), path)

    def submitted(*overrides: str) -> tuple[list[str], list[Any]]:
        tasks = tasks_of([str(path)], ["run.name=mine", *overrides], [3, 4], 1)
        assert submit(["echo", "7;cluster"], {}, tasks) == "7"
        return [task.words[0] for task in tasks], [load_config(path, ["run.name=mine", *overrides])] * 2

    first, wanted = submitted()
    path.write_text(path.read_text().replace("global_batch = ", "global_batch = 1"))
    second, wanted_then = submitted()
    path.unlink()
    assert len({*first, *second}) == 4
    for copies, configs in ((first, wanted), (second, wanted_then)):
        for copy, config, seed in zip(copies, configs, (3, 4), strict=True):
            run = config.run.model_copy(update={"seed": seed, "name": f"mine-seed{seed}"})
            assert load_config(copy) == config.model_copy(update={"run": run})


def test_a_run_that_it_would_not_go_on_with_is_refused_at_once(tmp_path: Path) -> None:
    """The job would find it, after hours in the queue."""
    given = [f"run.folder={tmp_path}"]
    begun = load_config(CONFIG, given)
    folder = run_folder(begun)
    folder.mkdir()
    save_config(begun, folder / "config.toml")
    assert len(tasks_of([CONFIG], given, [], 1)) == 1
    with pytest.raises(ConfigError, match=r"student.epochs: must be .*, got 7"):
        tasks_of([CONFIG], [*given, "student.epochs=7"], [], 1)
    assert len(tasks_of([CONFIG], [*given, "student.epochs=7"], [], 1, "never")) == 1


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
