"""Slurm for real: the batch script is told that its time is up, saves, is queued again, goes on and completes.

Starts munged, slurmctld and one slurmd of their own, as root; skipped where they are not installed or may not run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.jobs import ENVIRONMENT, job, tree
from helpers.places import ROOT
from helpers.ranks import run
from partialkd.config.load import parse_config, save_config
from partialkd.world.world import free_port

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.slurm]

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NODE = "localhost"  # the batch script has it resolved
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
MinJobAge=3600
SchedulerParameters=batch_sched_delay=1,sched_interval=2
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def what_is_missing() -> str | None:
    """Why Slurm cannot be started here."""
    if os.geteuid() != 0:
        return "Slurm's daemons are started as root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"Slurm is not installed: no {', '.join(absent)}" if absent else None


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A node that takes jobs -> the environment in which Slurm's commands find it."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    facts = {"host": socket.gethostname().partition(".")[0], "node": NODE, "folder": folder}
    (folder / "slurm.conf").write_text(CONFIG.format(**facts, controller_port=free_port(), port=free_port()))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    environment = {**ENVIRONMENT, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    files = {name: f"{folder}/munge.{name}" for name in ("socket", "pid", "log", "seed")}
    munge = [f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in files.items()]
    with ExitStack() as stack:
        for command in (
            ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", *munge],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D", "-N", NODE],
        ):
            log = stack.enter_context((folder / f"{command[0]}.log").open("w"))
            daemon = stack.enter_context(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            stack.callback(daemon.terminate)
        wait_for(lambda: "State=IDLE" in asked(environment, "scontrol", "show", "node", NODE), 60, folder)
        yield environment


def asked(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def wait_for(happened: Callable[[], Any], seconds: float, folder: Path) -> None:
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            logs = {path.name: path.read_text()[-3000:] for path in folder.glob("*.log")}
            raise AssertionError("\n".join(f"--- {name}\n{text}" for name, text in logs.items()))
        time.sleep(0.3)


def test_a_job_whose_time_is_up_is_queued_again_and_completes(tmp_path: Path) -> None:
    missing = what_is_missing()
    if missing:
        pytest.skip(missing)
    settings = tree(tmp_path)
    del settings["alone"]
    settings["run"] = {**settings["run"], "log_every": 1, "deterministic": True}
    settings["dist"] = {"device": "cpu"}
    settings["teacher"]["train"]["epochs"] = 30
    calm = run(job, 1, {**settings, "run": {**settings["run"], "name": "calm"}})[0]
    save_config(parse_config(settings), tmp_path / "run.toml")
    folder, slurm = tmp_path / "runs" / "trial", tmp_path / "slurm"
    slurm.mkdir()
    with cluster(slurm) as environment:
        environment |= {"PARTIALKD_VENV": str(Path(sys.executable).parents[1]), "RANKS_PER_NODE": "1"}
        script = [f"--output={slurm}/job.log", "launch/slurm/train.sbatch", str(tmp_path / "run.toml")]
        number = asked(environment, "sbatch", "--parsable", "--cpus-per-task=2", *script).strip()
        state = lambda: asked(environment, "scontrol", "show", "job", number)
        try:
            wait_for((folder / "metrics.jsonl").exists, 300, slurm)
            asked(environment, "scancel", "--signal=USR1", "--batch", number)  # as --signal=B:USR1@300 does
            wait_for(lambda: "JobState=COMPLETED" in state() or "JobState=FAILED" in state(), 300, slurm)
            assert "JobState=COMPLETED" in state()
            assert "Restarts=1" in state()
        finally:
            asked(environment, "scancel", number)
            wait_for(lambda: "JobState=RUNNING" not in state() and "COMPLETING" not in state(), 120, slurm)
    said = (slurm / "job.log").read_text()
    assert (
        len(re.findall("^[-0-9: ]+warning: (teacher: stopped and saved at step |stopped (before|while) )", said, re.M))
        == 1
    )
    assert said.count(f"queueing job {number} again") == 1
    assert "start 2: 1 nodes x 1 ranks" in said
    lines, expected = (
        [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("trial", "calm")
    )
    assert [line["loss"] for line in lines] == [line["loss"] for line in expected]
    assert json.loads((folder / "result.json").read_text())["sets"] == json.loads(json.dumps(calm["sets"]))
    final, undisturbed = (
        load_file(tmp_path / "runs" / name / "student" / "model.safetensors") for name in ("trial", "calm")
    )
    assert final.keys() == undisturbed.keys()
    assert all(torch.equal(final[key], undisturbed[key]) for key in final)
