"""The list of a rank's last collectives is written where one fails, and named in the error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.places import ROOT
from partialkd.world.flight_recorder import dump, enable, note
from partialkd.world.world import free_port

pytestmark = pytest.mark.distributed

JOB = """
import os, signal, sys
import torch
from pathlib import Path
from partialkd.world import flight_recorder
from partialkd.config import DistConfig
from partialkd.world.world import World

def step(world):
    for _ in range(2):
        world.sum(torch.ones(3))
    world.all_gather(torch.ones(4, 2))

world = World.start(DistConfig(device="cpu", timeout_s=float(sys.argv[2])))
flight_recorder.enable(Path(sys.argv[1]))
step(world)
if world.rank == 1 and sys.argv[3]:
    os.kill(os.getpid(), getattr(signal, sys.argv[3]))
try:
    world.max(torch.ones(5))
except RuntimeError:
    pass
print(flight_recorder.note(), flush=True)
os._exit(0)
"""


def run(folder: Path, timeout_s: float, how: str, *environments: dict[str, str]) -> list[str]:
    """Two ranks, of which rank 1 sends itself the signal `how` (if any) before the fourth collective -> their notes."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", JOB, str(folder), str(timeout_s), how]
    ranks = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **extra},
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for rank, extra in enumerate(environments or ({}, {}))
    ]  # fmt: skip
    try:
        first = ranks[0].communicate(timeout=120)[0]
    finally:
        if how:
            ranks[1].kill()  # a stopped one too
        second = ranks[1].communicate(timeout=120)[0]
    return [first.strip(), second.strip()]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "timeout_s"), [("SIGKILL", 100.0), ("SIGSTOP", 2.0)])
def test_the_list_is_there_when_a_peer_is_gone(how: str, timeout_s: float, tmp_path: Path) -> None:
    said, _ = run(tmp_path / "run", timeout_s, how)
    file = tmp_path / "run" / "rank_0.json"
    assert said.startswith("; its last collective: number 4, gloo:all_reduce, at world.py:")
    assert said.endswith(f"; the list: {file}")
    found = json.loads(file.read_text())
    assert [one["number"] for one in found] == [1, 2, 3, 4]
    assert [one["operation"].partition(":")[2] for one in found] == ["all_reduce"] * 2 + ["all_gather", "all_reduce"]
    assert [one["shapes"] for one in found] == [[[3]], [[3]], [[4, 2]], [[5]]]
    assert [line.rpartition(" ")[2] for line in found[2]["lines"][:3]] == ["start_all_gather", "all_gather", "step"]


@pytest.mark.slow
def test_what_the_user_set_stands(tmp_path: Path) -> None:
    """On rank 0 a prefix of the user's own, on rank 1 a recorder switched off; nothing fails here."""
    mine, off = {"TORCH_FR_DUMP_TEMP_FILE": f"{tmp_path}/mine_"}, {"TORCH_FR_BUFFER_SIZE": "0"}
    first, second = run(tmp_path / "run", 100.0, "", mine, off)
    assert first.endswith(f"; the list: {tmp_path}/mine_0.json")
    assert second == ""
    assert not (tmp_path / "run").exists()


def test_a_disk_that_refuses_does_not_hide_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partialkd.world.flight_recorder._collectives", lambda: [{"number": 1}])
    for key in ("TORCH_FR_DUMP_TEMP_FILE", "PARTIALKD_FR_PREFIX", "TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT"):
        monkeypatch.setenv(key, "")  # restored at the end, whatever `enable` sets
        monkeypatch.delenv(key)
    (tmp_path / "file").write_text("")
    enable(tmp_path / "file" / "folder")
    with pytest.raises(NotADirectoryError):
        dump()
    assert note().startswith("; its last collectives could not be written: [Errno 20]")
