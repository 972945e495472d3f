"""Jobs on a real Slurm of two nodes, submitted and by hand; benchmarks/results/slurm_jobs.txt has the last run.

make test ARGS="-m slurm tests/cluster"
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.jobs import tree
from helpers.places import ROOT
from helpers.slurm_cluster import Cluster, cluster, what_is_missing
from partialkd.config.load import parse_config, save_config
from partialkd.data.packing.prepare import prepare

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.slurm]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    missing = what_is_missing()
    if missing:
        pytest.skip(missing)
    with cluster(tmp_path_factory.mktemp("slurm") / "cluster") as found:
        yield found


def chain_of(folder: Path) -> dict[str, Any]:
    """A teacher that is trained first, and its student; bit for bit the same at every start."""
    settings = tree(folder)
    del settings["alone"]
    settings["run"] |= {"log_every": 1, "deterministic": True, "tensorboard": False}
    settings["teacher"]["train"]["epochs"] = 30
    return {**settings, "dist": {"device": "cpu"}}


def alone_of(folder: Path) -> dict[str, Any]:
    """A student without a teacher."""
    settings = chain_of(folder)
    del settings["evaluate"]
    settings["student"] |= {"method": {"name": "cosface", "scale": 16.0}}
    return {**settings, "teacher": {"source": "none"}}


def saved(folder: Path, settings: dict[str, Any]) -> Path:
    prepare(parse_config(settings).data)
    save_config(parse_config(settings), folder / "run.toml")
    return folder / "run.toml"


def submitted(slurm: Cluster, folder: Path, *words: str) -> str:
    """Submit from a folder that is not the repository -> the job's number."""
    program = [sys.executable, "-c", "from partialkd.commands.console import main; raise SystemExit(main())"]
    command = [*program, "submit", "--cpus", "4", "--logs", str(folder), "--json", "-", *words]
    environment = {**slurm.environment, "PYTHONPATH": str(ROOT), "MAX_RESTARTS": "0"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["job"])


def losses(folder: Path, name: str) -> list[float]:
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_two_nodes_stopped_and_queued_again_have_the_same_result(slurm: Cluster, tmp_path: Path) -> None:
    """As a job that nobody stopped. GPUs are asked for (stand-ins), a rank each; the ranks run on the CPU."""
    config = saved(tmp_path, chain_of(tmp_path))
    calm = submitted(slurm, tmp_path, str(config), "run.name=calm", "--nodes", "2", "--gpus", "1")
    state = slurm.ended(calm)
    assert "JobState=COMPLETED" in state, (tmp_path / f"slurm-{calm}.log").read_text()
    assert "Restarts=0" in state
    number = submitted(slurm, tmp_path, str(config), "--nodes", "2", "--gpus", "1")
    metrics = tmp_path / "runs" / "trial" / "metrics.jsonl"
    slurm.wait_for(metrics.exists, 600)
    slurm.asked("scancel", "--signal=USR1", "--batch", number)  # as --signal=B:USR1@300 does
    state = slurm.ended(number)
    said = (tmp_path / f"slurm-{number}.log").read_text()
    assert "JobState=COMPLETED" in state, said
    assert "Restarts=1" in state
    assert "start 1: 2 nodes x 1 ranks" in said
    assert "start 2: 2 nodes x 1 ranks" in said
    assert said.count(f"queueing job {number} again") == 1
    stopped = r"^[-0-9: ]+warning: (teacher: stopped and saved at step |stopped (before|while) )"
    assert len(re.findall(stopped, said, re.M)) == 1
    assert len(losses(tmp_path, "calm")) == (30 + 1) * 96 // 24
    assert losses(tmp_path, "trial") == losses(tmp_path, "calm")
    one, other = (json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in ("trial", "calm"))
    assert (one["sets"], one["world_size"]) == (other["sets"], 2)
    final, undisturbed = (
        load_file(tmp_path / "runs" / name / "student" / "model.safetensors") for name in ("trial", "calm")
    )
    assert final.keys() == undisturbed.keys()
    assert all(torch.equal(final[key], undisturbed[key]) for key in final)


def test_an_array_is_a_run_for_each_seed(slurm: Cluster, tmp_path: Path) -> None:
    """Of the configuration as it was submitted, not as it is when the job starts."""
    config = saved(tmp_path, alone_of(tmp_path))
    number = submitted(slurm, tmp_path, str(config), "--gpus", "1", "--seeds", "3,5", "--", "--hold")
    config.write_text("no configuration any more")
    slurm.asked("scontrol", "release", number)
    for task, seed in enumerate((3, 5)):
        assert "JobState=COMPLETED" in slurm.ended(f"{number}_{task}")
        result = json.loads((tmp_path / "runs" / f"trial-seed{seed}" / "result.json").read_text())
        assert (result["seed"], result["world_size"]) == (seed, 1)
        said = (tmp_path / f"slurm-{number}_{task}.log").read_text()
        assert f"trial-seed{seed}" in said
        assert f"trial-seed{8 - seed}" not in said


def test_a_rank_that_fails_fails_the_job_and_says_why_in_its_log(slurm: Cluster, tmp_path: Path) -> None:
    """An image that cannot be decoded ends one rank of two, on one node of two; the job is not queued again.

    Submitted by hand, from the repository, without GPUs.
    """
    settings = alone_of(tmp_path)
    saved(tmp_path, settings)
    record = tmp_path / "data" / "train.rec"
    content = bytearray(record.read_bytes())
    at = content.index(b"\xff\xd8\xff", len(content) // 2)
    content[at : at + 64] = bytes(64)
    record.write_bytes(content)
    del settings["data"]["prepare"]
    save_config(parse_config(settings), tmp_path / "run.toml")
    command = ["sbatch", "--parsable", "--nodes=2", "--cpus-per-task=4", f"--output={tmp_path}/slurm-%j.log"]
    number = slurm.asked(
        *command, "launch/slurm/train.sbatch", str(tmp_path / "run.toml"),
        PARTIALKD_VENV=sys.prefix, RANKS_PER_NODE="1", MAX_RESTARTS="0",
    ).strip()  # fmt: skip
    state = slurm.ended(number)
    said = (tmp_path / f"slurm-{number}.log").read_text()
    assert "JobState=FAILED" in state
    assert "Restarts=0" in state
    (error,) = set(re.findall(r"^(?:\d+: )?error: (.*train\.rec.*)$", said, re.M))
    assert "not an image of" in error
    own = [path.read_text() for path in (tmp_path / "runs" / "trial" / "logs").glob("rank_*.log")]
    assert sum("train.rec" in text and "error: " in text for text in own) == 1  # of the rank that met it


def test_tasks_of_srun_that_are_no_ranks_are_refused(slurm: Cluster, tmp_path: Path) -> None:
    """Each would train all of it by itself."""
    config = saved(tmp_path, alone_of(tmp_path))
    command = ["srun", "--nodes=2", "--ntasks=2", sys.executable, str(ROOT / "launch" / "train.py"), str(config)]
    environment = {**slurm.environment, "PYTHONPATH": str(ROOT)}
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        environment.pop(name, None)
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("these 2 tasks are not joined (no RANK)") == 1
    assert not (tmp_path / "runs").exists()
    assert os.access(tmp_path, os.W_OK)
