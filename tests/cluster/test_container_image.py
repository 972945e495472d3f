"""The image for the CPU, built from the Dockerfile and run; benchmarks/results/containers.txt has the last result.

    make test ARGS="-m container tests/cluster"

In the environment, where a machine needs them: PARTIALKD_BUILD, further options of `buildah bud` (for pip, for a base
image that lies here: --pull-never), and PARTIALKD_IMAGE, an image that is built already.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.places import ROOT

pytestmark = [pytest.mark.container, pytest.mark.slow]
NAME = "localhost/partialkd:cpu"
USER = 1000
# A host's name that resolves, its network, and limits no higher than this process's: for podman inside a container.
LIMITS = ["--network=host", "--hostname=localhost", "--ulimit=nofile=4096:4096", "--ulimit=nproc=1024:1024"]
SHORT = ["run.name=look", "data.path=data/look", "data.loader=jpeg", "evaluate.folds=2"]
SHORT += [
    f"data.prepare.{key}" for key in ("identities=16", "images_per_identity=8", "held_out_identities=8", "pairs=40")
]
for _phase in ("teacher.train", "student", "alone"):
    SHORT += [f"{_phase}.{key}" for key in ("max_steps=2", "schedule.warmup_steps=1", "epochs=1")]


@pytest.fixture(scope="module")
def image() -> str:
    """Build the target cpu -> its name."""
    absent = [program for program in ("buildah", "podman") if shutil.which(program) is None]
    if absent:
        pytest.skip(f"{' and '.join(absent)}: not installed; the image is neither built nor run")
    if given := os.environ.get("PARTIALKD_IMAGE"):
        return given
    options = shlex.split(os.environ.get("PARTIALKD_BUILD", ""))
    command = ["buildah", "bud", "--isolation=chroot", "--layers", "--target=cpu", f"--tag={NAME}", *options, "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return NAME


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Folders data and runs of the user that the image runs as; whoever tests is root, or that user."""
    for name in ("data", "runs"):
        (tmp_path / name).mkdir()
        if os.geteuid() == 0:
            os.chown(tmp_path / name, USER, USER)
    return tmp_path


def ran(image: str, folders: Path, *words: str, entry: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the image as docs/cluster.md says: read-only, with folders data and runs."""
    runtime = ["--runtime=runc"] if shutil.which("runc") else []
    command = ["podman", *runtime, "--cgroup-manager=cgroupfs", "--events-backend=file", "run", "--rm", *LIMITS]
    command += [
        "--read-only",
        "--tmpfs=/tmp:exec",
        *(f"--volume={folders / name}:/app/{name}" for name in ("data", "runs")),
    ]
    command += ([f"--entrypoint={entry}"] if entry else []) + [image, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_short_job(image: str, folders: Path) -> None:
    """On two ranks, to its end; then the health check is content."""
    done = ran(image, folders, "configs/quickstart.toml", *SHORT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((folders / "runs" / "look" / "result.json").read_text())
    assert (result["world_size"], result["identities"]) == (2, 16)
    network = folders / "runs" / "look" / "student" / "model.safetensors"
    assert network.stat().st_uid == USER
    assert ran(image, folders, entry="containers/healthcheck.sh").returncode == 0


def test_what_is_wrong_is_status_2(image: str, folders: Path) -> None:
    done = ran(image, folders, "configs/quickstart.toml", "student.lrr=1")
    assert (done.returncode, "unknown key" in done.stderr) == (2, True), done.stderr
    assert list((folders / "runs").iterdir()) == []


def test_it_can_write_nothing_but_its_folders(image: str, folders: Path) -> None:
    script = "id -u; for at in . ~ /etc data runs /tmp; do touch $at/x 2>/dev/null && echo $at; done; true"
    done = ran(image, folders, "-c", script, entry="sh")
    assert done.stdout.split() == [str(USER), "data", "runs", "/tmp"], done.stderr


def test_its_program_finds_it_fit(image: str, folders: Path) -> None:
    done = ran(image, folders, "doctor", "--json", "-", entry="partialkd")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert {one["name"]: one["verdict"] for one in found["findings"]}["packages"] in ("good", "doubtful")  # no DALI
