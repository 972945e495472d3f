"""launch/local.sh as people use it: an audience that leaves, a closed terminal, nohup, and a machine without a network.

One job goes through all of it, because a start takes long.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.jobs import ENVIRONMENT, tree
from helpers.places import ROOT
from partialkd.config.load import parse_config, save_config

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
BIN = str(Path(sys.executable).parent)


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, str]:
    """An environment in which programs reach this machine only; what else they try stands in refused.txt."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path / "alone.so"
    source = ROOT / "tests" / "helpers" / "alone.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return {
        **ENVIRONMENT, "LD_PRELOAD": str(library), "REFUSED_LOG": str(tmp_path / "refused.txt"),
        "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii",
    }  # fmt: skip


def test_the_refusal_works(tmp_path: Path, alone: dict[str, str]) -> None:
    """192.0.2.0/24 belongs to nobody."""
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))"
    got = subprocess.run([sys.executable, "-c", code], env=alone, capture_output=True, text=True, check=False)
    assert "Network is unreachable" in got.stderr
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    subprocess.run([sys.executable, "-c", code], env=alone, check=True)
    assert [line.split(": ")[1] for line in (tmp_path / "refused.txt").read_text().splitlines()] == ["192.0.2.1"]


def _lines(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def test_a_job_loses_its_audience_is_stopped_and_goes_on(tmp_path: Path, alone: dict[str, str]) -> None:
    settings = tree(tmp_path)
    del settings["alone"]
    settings["run"] |= {"log_every": 1, "checkpoint_every": 0}
    settings["teacher"]["train"]["epochs"] = 30
    save_config(parse_config(settings), tmp_path / "run.toml")
    folder, errors = tmp_path / "runs" / "trial", tmp_path / "errors.txt"
    command = [str(ROOT / "launch" / "local.sh"), str(tmp_path / "run.toml")]
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command, env=alone, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        ) as job,
    ):
        assert job.stdout is not None
        seen = next(line for line in job.stdout if "teacher step 2/" in line)
        job.stdout.close()
        _wait(lambda: _lines(folder) > 6, job)
        os.killpg(job.pid, signal.SIGHUP)
        assert job.wait(120) == 75, errors.read_text()
    said = errors.read_text().splitlines()
    assert [line for line in said if "standard output cannot be written to any more (Broken pipe)" in line] == said[:1]
    assert "stopped and saved at step" in said[1]
    step = int(said[1].rpartition(" ")[2])
    assert said[2:] == [f"to go on: {' '.join(command)} --resume auto"], seen
    assert [path.name for path in folder.glob("teacher/checkpoints/step_*")] == [f"step_{step:09d}"]

    again = said[-1].removeprefix("to go on: ")
    with subprocess.Popen(
        ["bash", "-c", f"trap '' HUP; exec {again}"],
        env=alone, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as job:  # fmt: skip
        assert job.stdout is not None
        shown = [next(line for line in job.stdout if "going on" in line)]
        _wait(lambda: _lines(folder) > step + 2, job)
        os.killpg(job.pid, signal.SIGHUP)  # as nohup has it
        output, errors_again = job.communicate(timeout=300)
        assert job.returncode == 0, errors_again
    assert f"going on from step {step} of " in shown[0]
    assert "| faces | student |" in output
    assert r"\xb1" in output  # what ASCII has no letter for
    weak = "the teacher that this run has trained is little better than guessing"  # on some processors
    assert [line for line in errors_again.splitlines() if weak not in line] == []
    steps = [line["step"] for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]
    assert steps[: 2 * step] == list(range(1, 2 * step + 1))
    assert "| faces | student |" in (folder / "logs" / "rank_0.log").read_text()
    assert (folder / "logs" / "rank_1.log").exists()
    assert not (tmp_path / "refused.txt").exists(), (tmp_path / "refused.txt").read_text()


def _wait(happened: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    for _ in range(2000):
        if happened() or job.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in 100 s")


FALLING = """
import os, signal, sys
from pathlib import Path
from partialkd.errors import DataError
from partialkd.storage.mapped_file import MappedFile
path = Path(sys.argv[1])
if os.environ["RANK"] == "1":
    mapped = MappedFile(path, path.stat().st_size, DataError)
    os.truncate(path, 10)
    print(bytes(mapped.array("u1")[-1:]))
else:
    import time
    time.sleep(60)
"""


def test_a_rank_that_cannot_speak_any_more_is_named_with_its_file(tmp_path: Path) -> None:
    """Rank 1 reads what another program has cut off, and is ended by the system."""
    (tmp_path / "falling.py").write_text(FALLING)
    (tmp_path / "data.bin").write_bytes(bytes(1 << 16))
    launcher = [sys.executable, "-m", "partialkd.world.launcher", "--standalone", "--local-addr=127.0.0.1"]
    got = subprocess.run(
        [*launcher, "--nproc-per-node=2", str(tmp_path / "falling.py"), str(tmp_path / "data.bin")],
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert got.returncode == 1
    (line,) = got.stderr.splitlines()
    assert line.startswith("error: rank 1 (process ")
    assert line.endswith(f"was ended by SIGBUS: {tmp_path / 'data.bin'} had 65536 bytes when it was mapped, has 10 now")
