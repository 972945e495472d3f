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
from partialkd.world.world import free_port

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
    SHORT += [f"{_phase}.{key}" for key in ("epochs=2", "schedule.warmup_steps=1")]


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


def command_of(image: str, folders: Path, *words: str, entry: str | None = None, **environment: str) -> list[str]:
    """Run the image as docs/cluster.md says: read-only, with folders data and runs."""
    runtime = ["--runtime=runc"] if shutil.which("runc") else []
    command = ["podman", *runtime, "--cgroup-manager=cgroupfs", "--events-backend=file", "run", "--rm", *LIMITS]
    command += [
        "--read-only",
        "--tmpfs=/tmp:exec",
        *(f"--volume={folders / name}:/app/{name}" for name in ("data", "runs")),
        *(f"--env={name}={value}" for name, value in environment.items()),
    ]
    return command + ([f"--entrypoint={entry}"] if entry else []) + [image, *words]


def ran(image: str, folders: Path, *words: str, entry: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command_of(image, folders, *words, entry=entry), capture_output=True, text=True, check=False)


def test_a_short_job(image: str, folders: Path) -> None:
    """On two ranks, to its end; then the health check is content."""
    done = ran(image, folders, "configs/quickstart.toml", *SHORT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((folders / "runs" / "look" / "result.json").read_text())
    assert (result["world_size"], result["identities"]) == (2, 16)
    network = folders / "runs" / "look" / "student" / "model.safetensors"
    assert network.stat().st_uid == USER
    assert ran(image, folders, entry="containers/healthcheck.sh").returncode == 0


def test_two_of_them_train_together(image: str, folders: Path) -> None:
    """As compose-two-nodes.yaml starts them, but on the host's network: each has an address of its own all the same.

    torchrun tells machines apart by address and process, and in a container it is always process 1.
    """
    shared = {"NODES": "2", "HEAD": "127.0.0.1", "PORT": str(free_port()), "NPROC": "1"}
    words = ["configs/quickstart.toml", *SHORT, "--resume", "auto"]
    commands = [
        command_of(image, folders, *words, entry="launch/node.sh", **shared, NODE_RANK=number, ADDRESS=address)
        for number, address in (("0", "127.0.0.1"), ("1", "127.0.0.2"))
    ]
    nodes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    said = [node.communicate(timeout=1800) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert json.loads((folders / "runs" / "look" / "result.json").read_text())["world_size"] == 2


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
    verdicts = {one["name"]: one["verdict"] for one in json.loads(done.stdout)["findings"]}
    assert (verdicts["packages"], verdicts["compilers"]) == ("good", "good")


def test_what_is_compiled_meanwhile_is_built_and_loaded(image: str, folders: Path) -> None:
    """By torch.compile, with the image's own compiler, below /tmp."""
    script = "import torch; x = torch.ones(64); print(float(torch.compile(torch.sin)(x).sub(x.sin()).abs().max()))"
    done = ran(image, folders, "-c", script, entry="python")
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 1e-6
