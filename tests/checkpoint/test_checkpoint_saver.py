"""Saving in the background: what is written is what was, when it appears, whom a failure reaches, how it ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.ranks import run
from helpers.snapshots import expect, load, no_file_larger_than, snapshot
from partialkd import checkpoint
from partialkd.checkpoint import saver as checkpoint_saver
from partialkd.checkpoint.saver import Saver
from partialkd.checkpoint.snapshot import write_own
from partialkd.errors import CheckpointError
from partialkd.world.world import World

CLASSES = 10


class _Gate:
    """Holds back a background writer until it is opened."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        patch.setattr(checkpoint_saver, "write_own", self._write)

    def _write(self, *args: Any) -> Any:
        assert self._open.wait(60)
        return write_own(*args)

    def open(self) -> None:
        self._open.set()


def _later(root: Path, step: int) -> Path:
    """The newest checkpoint, once it is of this step."""
    deadline = time.monotonic() + 60
    while (path := checkpoint.newest(root)) is None or int(path.name[5:14]) < step:
        assert time.monotonic() < deadline, f"step {step} never appeared"
        time.sleep(0.005)
    return path


def _change_after_saving(world: World, root: Path) -> tuple[str | None, str]:
    """Save, change everything in place, only then let the writers write; no collective after `save`."""
    one, saver = snapshot(world, CLASSES, 4), Saver(root, world, 2, asynchronous=True)
    with pytest.MonkeyPatch.context() as patch:
        gate = _Gate(patch)
        path = saver.save(one)
        for x in (*one.student.values(), *one.local.values(), *one.centres.values()):
            x.zero_()
        one.progress.clear()
        before = checkpoint.newest(root)
        gate.open()
        appeared = _later(root, 4)
    assert appeared == path
    world.barrier()
    saver.wait()
    return None if before is None else str(before), str(path)


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_written_is_what_was_and_needs_no_further_call(tmp_path: Path, world_size: int) -> None:
    alone = world_size == 1
    given = [_change_after_saving(World(), tmp_path)] if alone else run(_change_after_saving, world_size, tmp_path)
    for before, path in given:
        assert before is None
        expect(load(World(), Path(path), CLASSES), CLASSES, 0, 1, saved_by=world_size, step=4)


def _one_rank_writes_late(world: World, root: Path, patient: bool) -> tuple[bool, bool]:
    saver = Saver(root, world, 2, asynchronous=True)
    with pytest.MonkeyPatch.context() as patch:
        gate = _Gate(patch)
        saver.save(snapshot(world, CLASSES, 4))
        if world.rank == 0:
            gate.open()
        world.barrier()
        early = checkpoint.newest(root) is not None
        gate.open()
        if patient:
            _later(root, 4)
        saver.wait()
    return early, checkpoint.newest(root) is not None


@pytest.mark.distributed
@pytest.mark.parametrize("patient", [False, True])
def test_it_appears_when_all_ranks_have_written(tmp_path: Path, patient: bool) -> None:
    assert run(_one_rank_writes_late, 2, tmp_path, patient) == [(False, True)] * 2


def _fail_then_save(world: World, root: Path, victim: int) -> tuple[str, str]:
    saver = Saver(root, world, 2, asynchronous=True)
    one = snapshot(world, CLASSES, 5)
    one.local["rng.cpu"] = torch.zeros(40_000, dtype=torch.uint8)
    with no_file_larger_than(20_000 if world.rank == victim else 1 << 40):
        saver.save(one)
        try:
            saver.save(snapshot(world, CLASSES, 6))
            return "saved", ""
        except CheckpointError as error:
            text = str(error)
    path = saver.save(snapshot(world, CLASSES, 7))
    saver.wait()
    saver.close()
    return text, path.name


@pytest.mark.distributed
@pytest.mark.parametrize("victim", [0, 1])
def test_a_failure_behind_the_step_is_raised_by_the_next_save_on_all_ranks(tmp_path: Path, victim: int) -> None:
    results = run(_fail_then_save, 2, tmp_path, victim)
    assert results[0] == results[1]
    text, path = results[0]
    assert text.startswith(f"rank {victim}: saving step 5: ")
    assert f"local/0000{victim}.safetensors: cannot be written: File too large" in text
    assert [one.name for one in tmp_path.iterdir()] == [path] == ["step_000000007"]


def _others_never_tell(world: World, root: Path) -> bool:
    """Rank 1's writer hangs; both ranks end all the same, without a checkpoint."""
    saver = Saver(root, world, 2, asynchronous=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_saver, "GRACE_S", 0.2)
        gate = _Gate(patch)
        saver.save(snapshot(world, CLASSES, 5))
        if world.rank == 0:
            gate.open()
        saver.close()
        saver.close()
        gate.open()
        found = checkpoint.newest(root) is not None
    world.barrier()
    return found


@pytest.mark.distributed
def test_closing_waits_for_no_other_rank(tmp_path: Path) -> None:
    assert run(_others_never_tell, 2, tmp_path) == [False, False]


def test_closing_lets_a_save_end(tmp_path: Path) -> None:
    saver = Saver(tmp_path, World(), 2, asynchronous=True)
    path = saver.save(snapshot(World(), CLASSES, 5))
    saver.close()
    assert checkpoint.newest(tmp_path) == path


def test_host_memory_is_used_again() -> None:
    staging = checkpoint_saver.Staging()
    first, second = (staging.copy(snapshot(World(), CLASSES, step)) for step in (1, 2))
    for name, x in second.centres.items():
        assert x.data_ptr() == first.centres[name].data_ptr() != 0
    other = staging.copy(snapshot(World(), CLASSES + 1, 3))
    assert len(other.centres["unit"]) == CLASSES + 1
