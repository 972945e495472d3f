"""What would fail in the same way again is not started again: by torchrun, by Slurm's queue."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.jobs import ENVIRONMENT, TORCHRUN
from helpers.places import ROOT
from helpers.started_jobs import made, named, start
from partialkd.errors import ConfigError, DataError, RankLost, StorageError, TeacherError
from partialkd.run.checks import for_good
from partialkd.storage.atomic_files import naming
from partialkd.world.launch import STATUS_FILE, configured
from partialkd.world.world import World

FAILING = """
import sys
from pathlib import Path
from partialkd.config import DistConfig
from partialkd.errors import DataError
from partialkd.run.checks import for_good
from partialkd.world.launch import launched

def body(world):
    with open(sys.argv[1], "a") as tries:
        tries.write(f"{world.rank}\\n")
    with for_good(world):
        world.together(missing)

def missing():
    raise DataError("nowhere.rec: no such file")

sys.exit(launched(DistConfig(device="cpu"), body))
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_torchruns_restarts_do_nothing_after_a_permanent_error(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    environment = {**ENVIRONMENT, STATUS_FILE: str(tmp_path / "status")}
    command = [*TORCHRUN, "--max-restarts=2", str(tmp_path / "failing.py"), str(tmp_path / "tries")]
    got = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert got.returncode == 1
    assert sorted((tmp_path / "tries").read_text().split()) == ["0", "1"]
    assert got.stderr.count("nowhere.rec: no such file") == 1
    assert (tmp_path / "status").read_text() == "2\n"


def fail(error: Exception) -> None:
    raise error


def test_which_errors_are_permanent(tmp_path: Path) -> None:
    """Configuration always, files while nothing has begun; a lost rank never."""
    assert ConfigError("x").permanent
    assert not RankLost("x").permanent
    for kind, permanent in ((DataError, True), (TeacherError, True), (RankLost, False)):
        with pytest.raises(kind) as caught, for_good(World()):
            raise kind("x")
        assert caught.value.permanent == permanent
    assert not DataError("a record is broken").permanent
    for number, permanent in ((errno.EACCES, True), (errno.EROFS, True), (errno.ENOSPC, False)):
        with pytest.raises(StorageError) as caught, naming(tmp_path):
            raise OSError(number, os.strerror(number))
        assert caught.value.permanent == permanent
        with pytest.raises(StorageError) as shared:
            World().together(lambda error=caught.value: fail(error))
        assert shared.value.permanent == permanent
    made(tmp_path)
    with pytest.raises(TeacherError) as missing, for_good(World()):
        start(named(tmp_path, "x", path=str(tmp_path / "typo.pt"), model={"name": "iresnet18"}, project_to=16))
    assert missing.value.permanent


def test_the_status_is_left_for_a_batch_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATUS_FILE, str(tmp_path / "status"))

    def wrong() -> None:
        raise ConfigError("run.name: unknown key")

    with pytest.raises(SystemExit) as end:
        configured(wrong)
    assert end.value.code == 2
    assert (tmp_path / "status").read_text() == "2\n"


SRUN = """#!/usr/bin/env bash
trap : USR1
until (((0x$(sed -n 's/^SigCgt:\\s*//p' "/proc/$PPID/status") >> 9) & 1)); do sleep 0.1; done # it hears USR1
kill -USR1 "$PPID"
sleep 0.5
[[ -z ${FAKE_STATUS:-} ]] || echo "$FAKE_STATUS" > "$PARTIALKD_STATUS_FILE"
exit 1
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo localhost; else echo "$@" >> "$FAKE_QUEUE"; fi
"""


PYTHON = """#!/usr/bin/env bash
echo "$@" > "$FAKE_CHECK"
exit "${FAKE_WRONG:-0}"
"""


def batch_script(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run launch/slurm/train.sbatch with stand-ins for srun, scontrol and python; what it says is in `log`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(PYTHON)
    (tmp_path / "bin" / "python").chmod(0o755)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    given = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "2",
        "FAKE_QUEUE": str(tmp_path / "queue"), "FAKE_CHECK": str(tmp_path / "check"), "PARTIALKD_VENV": str(tmp_path),
        **environment,
    }  # fmt: skip
    command = ["bash", "launch/slurm/train.sbatch", "run.toml", "run.name=x"]
    with (tmp_path / "log").open("w") as log:  # no pipe: the script leaves a sleep behind
        return subprocess.run(command, cwd=tmp_path, env=given, stdout=log, stderr=log, timeout=60, check=False)


@pytest.mark.parametrize(("said", "queued", "status"), [("2", False, 2), ("", True, 0)], ids=["wrong", "time is up"])
def test_the_batch_script_queues_no_wrong_job_again(said: str, queued: bool, status: int, tmp_path: Path) -> None:
    """Its time is up in both cases."""
    got = batch_script(tmp_path, FAKE_STATUS=said)
    at_last = (tmp_path / "log").read_text()
    assert got.returncode == status, at_last
    assert (tmp_path / "queue").exists() == queued
    assert ("not queued again: it would fail in the same way" in at_last) == (not queued)
    assert not (tmp_path / "slurm-7.status").exists()
    assert (tmp_path / "check").read_text() == "./launch/train.py --check run.toml run.name=x\n"


def test_the_batch_script_starts_no_rank_with_a_wrong_configuration(tmp_path: Path) -> None:
    assert batch_script(tmp_path, FAKE_WRONG="2").returncode == 2
    assert "rendezvous" not in (tmp_path / "log").read_text()  # said when ranks are started
    assert not (tmp_path / "queue").exists()
