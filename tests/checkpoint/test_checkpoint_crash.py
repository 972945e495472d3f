"""Killed while it writes, a run has a checkpoint: real processes, SIGKILL, at every system call, byte and at any time.

A writer is a forked process that saves and saves. Its `Fuse` kills it at the n-th thing that it does to the disk;
elsewhere it is killed from outside after a random time. Whatever is the newest checkpoint then must be complete and
hold what was saved under its step, and the next writer must be able to go on in the same folder.
"""

from __future__ import annotations

import io
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.snapshots import expect, load, snapshot
from partialkd import checkpoint
from partialkd.checkpoint.saver import Saver
from partialkd.config import DistConfig
from partialkd.world.world import World, free_port

CLASSES = 4
CALLS = ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink")  # of the os module


class Fuse:
    """Counts what this process does to the disk, in calls or in bytes written, and kills it when `left` are done."""

    def __init__(self, left: int, unit: str) -> None:
        self.left, self.unit = left, unit

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._counted(getattr(os, name)))
        plain = io.open
        io.open = lambda *args, **kwargs: _Stream(plain(*args, **kwargs), self)

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.spend("calls", 1)
            return call(*args, **kwargs)

        return counted

    def spend(self, unit: str, amount: int) -> None:
        if unit == self.unit:
            self.left -= amount
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def write(self, stream: Any, data: memoryview) -> int:
        """Byte by byte as far as the fuse allows."""
        if self.unit == "bytes" and self.left < len(data):
            stream.write(data[: self.left])
            stream.flush()
        self.spend("bytes", len(data))
        self.spend("calls", 1)
        written: int = stream.write(data)
        return written


class _Stream:
    """An open file whose writing goes through a fuse."""

    def __init__(self, stream: Any, fuse: Fuse) -> None:
        self._stream, self._fuse = stream, fuse

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, data: Any) -> int:
        return self._fuse.write(self._stream, memoryview(data))


def _fork(action: Callable[[], None]) -> int:
    """Start `action` in a process of its own, which never comes back here -> its id."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def _status(pid: int) -> int:
    """Of a process that ended: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _save_steps(root: Path, world: World, steps: list[int], asynchronous: bool, fuse: Fuse | None = None) -> None:
    """Publishes, removes what is old, and writes steps again that are there already."""
    saver = Saver(root, world, 1, asynchronous)
    if fuse:
        fuse.install()
    for step in steps:
        saver.save(snapshot(world, CLASSES, step))
    saver.wait()


def _survivor(root: Path, saved_by: int = 1) -> int:
    """The step of the newest checkpoint, which is whole."""
    path = checkpoint.newest(root)
    assert path is not None
    step = int(path.name[5:14])
    expect(load(World(), path, CLASSES), CLASSES, 0, 1, saved_by, step)
    found = checkpoint.load_newest(root, World(), range(CLASSES), CLASSES)
    assert found is not None
    assert found[0] == path
    return step


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_killed_at_every_call(tmp_path: Path, asynchronous: bool) -> None:
    """At every write, flush, rename, new folder and removal, in one folder, until a writer comes through."""
    _save_steps(tmp_path, World(), [1], asynchronous=False)
    survivors = []
    for calls in range(1000):
        fuse = Fuse(calls, "calls")
        steps = [survivors[-1] + 1 if survivors else 2] * 2  # the same step twice
        status = _status(_fork(lambda: _save_steps(tmp_path, World(), steps, asynchronous, fuse)))  # noqa: B023
        survivors.append(_survivor(tmp_path))
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert calls > 60  # two saves do more than that
    assert survivors == sorted(survivors)
    assert len(set(survivors)) > 3  # some got as far as to publish
    assert [path.name[:14] for path in tmp_path.iterdir()] == [f"step_{survivors[-1]:09d}"]


@pytest.mark.slow
def test_killed_at_any_byte(tmp_path: Path) -> None:
    _save_steps(tmp_path, World(), [1], asynchronous=False)
    draw, step, killed = random.Random(0), 1, 0
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    for _ in range(100):
        fuse = Fuse(draw.randrange(2 * size), "bytes")
        steps = [step + 1, step + 2]
        killed += _status(_fork(lambda: _save_steps(tmp_path, World(), steps, False, fuse))) != 0  # noqa: B023
        step = _survivor(tmp_path)
        assert step in (steps[0] - 1, *steps)
    assert killed > 90


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_killed_at_any_time(tmp_path: Path, asynchronous: bool) -> None:
    _save_steps(tmp_path, World(), [1], asynchronous=False)
    draw, step = random.Random(1), 1
    for _ in range(50):
        steps, before = list(range(step, step + 1000)), sorted(tmp_path.iterdir())
        pid = _fork(lambda: _save_steps(tmp_path, World(), steps, asynchronous))  # noqa: B023
        while sorted(tmp_path.iterdir()) == before:  # until it has begun
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert _status(pid) == -signal.SIGKILL
        now = _survivor(tmp_path)
        assert now >= step
        step = now
    _save_steps(tmp_path, World(), [step + 1], asynchronous)
    assert _survivor(tmp_path) == step + 1


def _rank(root: Path, rank: int, port: int, steps: list[int], asynchronous: bool, fuse: Fuse | None) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    with World.start(DistConfig(device="cpu", timeout_s=20)) as world:
        _save_steps(root, world, steps, asynchronous, fuse)


def _two_ranks(root: Path, steps: list[int], asynchronous: bool, fuses: dict[int, Fuse]) -> list[int]:
    """How two new ranks that save these steps end."""
    port = free_port()
    pids = [_fork(lambda: _rank(root, rank, port, steps, asynchronous, fuses.get(rank))) for rank in range(2)]  # noqa: B023
    return [_status(pid) for pid in pids]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("asynchronous", [False, True])
def test_one_of_two_ranks_is_killed(tmp_path: Path, asynchronous: bool) -> None:
    """The other rank ends with an error, and a checkpoint of both stands."""
    assert _two_ranks(tmp_path, [1], asynchronous, {}) == [0, 0]
    draw, step = random.Random(2), 1
    for attempt in range(6):
        victim = attempt % 2
        steps = [step + 1, step + 2, step + 3]
        ends = _two_ranks(tmp_path, steps, asynchronous, {victim: Fuse(draw.randrange(30), "calls")})
        assert ends[victim] == -signal.SIGKILL
        assert ends[1 - victim] == 1
        now = _survivor(tmp_path, saved_by=2)
        assert now >= step
        step = now
    assert _two_ranks(tmp_path, [step + 1], asynchronous, {}) == [0, 0]
    assert _survivor(tmp_path, saved_by=2) == step + 1
