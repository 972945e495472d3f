"""A real Slurm of two nodes on this machine, as root: munged, slurmctld and two slurmd of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from helpers.jobs import ENVIRONMENT
from helpers.places import ROOT
from partialkd.world.world import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "unshare")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NODES = ("n1", "n2")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
FirstJobId={job}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
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
KillWait=5
MinJobAge=3600
SchedulerParameters=batch_sched_delay=1,sched_interval=2
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=8 RealMemory=1000 Gres=gpu:8 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=8 RealMemory=1000 Gres=gpu:8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRES = "NodeName=n[1-2] Name=gpu File=/dev/tty[0-7]\n"  # stand-ins: so that asking for GPUs is scheduled


def what_is_missing() -> str | None:
    """Why Slurm cannot be started here."""
    if os.geteuid() != 0:
        return "Slurm's daemons are started as root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"Slurm is not installed: no {', '.join(absent)}" if absent else None


class Cluster:
    """Two nodes that take jobs. `environment`: in which Slurm's commands find them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**ENVIRONMENT, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def asked(self, *command: str, **environment: str) -> str:
        """What a command says, called in the repository."""
        around = {**self.environment, **environment}
        return subprocess.run(command, env=around, cwd=ROOT, capture_output=True, text=True, check=False).stdout

    def state(self, job: str) -> str:
        """What Slurm says of a job, or of a task of an array (`7_1`)."""
        return self.asked("scontrol", "show", "job", job)

    def ended(self, job: str, seconds: float = 1200) -> str:
        """Wait until a job has ended -> its state."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_for(lambda: any(f"JobState={word}" in self.state(job) for word in over), seconds)
        return self.state(job)

    def cancel_all(self) -> None:
        """End what still runs: daemons that are gone end no job."""
        self.asked("scancel", "--signal=KILL", "--full", "--partition=main")
        self.asked("scancel", "--partition=main")
        self.wait_for(lambda: not self.asked("squeue", "--noheader"), 60)

    def wait_for(self, happened: Callable[[], Any], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > end:
                logs = {path.name: path.read_text()[-3000:] for path in self.folder.glob("*.log")}
                raise AssertionError("\n".join(f"--- {name}\n{text}" for name, text in logs.items()))
            time.sleep(0.5)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start the daemons in a folder; the names of the nodes are known to them and to what they start."""
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    # A job's number says the port of its rendezvous: clusters that run at the same time need other numbers.
    ports = {"job": 1 + os.getpid() % 15_000, "controller": free_port(), "first": free_port(), "second": free_port()}
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, **ports))
    (folder / "gres.conf").write_text(GRES)
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "hosts").write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 {' '.join(NODES)}\n")
    found = Cluster(folder)
    files = {name: f"{folder}/munge.{name}" for name in ("socket", "pid", "log", "seed")}
    munge = [f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in files.items()]
    resolved = ["unshare", "-m", "sh", "-c", f'mount --bind "{folder}/hosts" /etc/hosts && exec "$@"', "sh"]
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", *munge],
        [*resolved, "slurmctld", "-D", "-c"],
        *([*resolved, "slurmd", "-D", "-N", node] for node in NODES),
    ]
    with ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"daemon-{number}.log").open("w"))
            daemon = stack.enter_context(subprocess.Popen(command, env=found.environment, stdout=log, stderr=log))
            stack.callback(daemon.terminate)
        idle = lambda: found.asked("scontrol", "show", "nodes").count("State=IDLE") == len(NODES)
        found.wait_for(idle, 90)
        stack.callback(found.cancel_all)  # before the daemons are ended, also where a test was interrupted
        yield found
