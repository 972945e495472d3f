"""Damaged checkpoints and full disks: an error naming file and rank, or the good one before, never a part of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from helpers.ranks import run
from helpers.snapshots import expect, load, save, snapshot
from partialkd import checkpoint
from partialkd.checkpoint import snapshot as snapshot_module
from partialkd.checkpoint.saver import Saver
from partialkd.checkpoint.snapshot import Snapshot
from partialkd.errors import CheckpointError
from partialkd.run.folder import go_back
from partialkd.world.shard import shard_of
from partialkd.world.world import World

CLASSES = 10
FILES = (
    "student.safetensors", "local/00000.safetensors", "local/00001.safetensors", "progress.json", "manifest.json",
    "centres/000000000-000000005.safetensors", "centres/000000005-000000010.safetensors",
)  # fmt: skip


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


DAMAGE: dict[str, Callable[[Path], None]] = {"flipped": _flip, "truncated": _truncate, "missing": Path.unlink}


def _save_two(world: World, root: Path) -> None:
    for step in (1, 2):
        Saver(root, world, keep=9).save(snapshot(world, CLASSES, step))


def test_a_checkpoint_that_is_not_finite_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions saved such, with the right checksums."""
    good, *_ = save(tmp_path, CLASSES, 1)
    later = snapshot(World(), CLASSES, 2)
    later.local["buffer.mean"][1] = torch.inf
    with pytest.raises(CheckpointError, match=r"^saving step 2: NaN or infinity in buffer\.mean$"):
        Saver(tmp_path, World(), keep=9).save(later)
    assert checkpoint.complete(tmp_path) == [good]
    with monkeypatch.context() as patch:
        patch.setattr(snapshot_module, "not_finite", lambda _: None)
        bad = Saver(tmp_path, World(), keep=9).save(later)
    with pytest.raises(CheckpointError, match=r"loading .*step_000000002: NaN or infinity in buffer\.mean$"):
        load(World(), bad, CLASSES)
    path, _, warned = _load_newest(World(), tmp_path)
    assert path == good
    assert "step_000000002: NaN or infinity in buffer.mean" in warned[0]


def _load_or_error(world: World, path: Path) -> Snapshot | str:
    try:
        return load(world, path, CLASSES)
    except CheckpointError as error:
        return str(error)


def _load_newest(world: World, root: Path) -> tuple[Path, Snapshot, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shard = shard_of(CLASSES, world.rank, world.size)
        found = checkpoint.load_newest(root, world, shard, CLASSES)
    assert found is not None
    return (*found, [str(one.message) for one in caught])


@pytest.mark.distributed
@pytest.mark.parametrize("damage", list(DAMAGE))
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_and_the_one_before_is_taken(tmp_path: Path, name: str, damage: str) -> None:
    run(_save_two, 2, tmp_path)
    newest = tmp_path / "step_000000002"
    DAMAGE[damage](newest / name)
    errors = run(_load_or_error, 2, newest)
    assert errors[0] == errors[1]  # whoever met it, nobody has anything of this checkpoint
    assert isinstance(errors[0], str)
    assert str(newest / name) in errors[0]
    readers = {"local/00000": [0], "local/00001": [1], "centres/000000000": [0], "centres/000000005": [1]}
    met_by = next((ranks for start, ranks in readers.items() if name.startswith(start)), [])
    assert [rank for rank in range(2) if f"rank {rank}: loading" in errors[0]] == met_by  # none: all alike
    with pytest.raises(CheckpointError, match=name):
        checkpoint.verify(newest)
    for rank, (path, got, warned) in enumerate(run(_load_newest, 2, tmp_path)):
        assert path == tmp_path / "step_000000001"
        expect(got, CLASSES, rank, 2, saved_by=2, step=1)
        assert len(warned) == (rank == 0)
        assert all(str(newest / name) in text for text in warned)


def test_every_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 4, 3)
    file = path / "manifest.json"
    good = file.read_bytes()
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        assert checkpoint.newest(tmp_path) is None, position
    file.write_bytes(good)
    assert checkpoint.newest(tmp_path) == path


def test_an_older_format_is_refused_by_name(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 4, 3)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(CheckpointError, match=r"manifest\.json: format must be 2, got 1"):
        load(World(), path, 4)


def test_a_run_that_lost_all_its_checkpoints_does_not_begin_again(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path / "none", World(), range(4), 4) is None
    for path in save(tmp_path, 4, 1, 2):
        _flip(path / "student.safetensors")
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(CheckpointError, match=r"step_000000002/student.*step_000000001/student"),
    ):
        checkpoint.load_newest(tmp_path, World(), range(4), 4)


def test_going_back_to_a_damaged_one_is_an_error_and_moves_nothing(tmp_path: Path) -> None:
    first, _ = save(tmp_path / "student" / "checkpoints", 4, 1, 2)
    _flip(first / "progress.json")
    with pytest.raises(CheckpointError, match=r"progress\.json: damaged"):
        go_back(tmp_path, first, ["student"])
    assert sorted(path.name for path in first.parent.iterdir()) == ["step_000000001", "step_000000002"]


# ------------------------------------------------------------------------------------ disks that refuse


@contextmanager
def _tmpfs(folder: Path, size: str) -> Iterator[Path]:
    """A small file system of its own; only root can have one."""
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip("a file system of its own: only root may mount one (File too large stands in for it elsewhere)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _save_and_wait(saver: Saver, one: Snapshot) -> None:
    saver.save(one)
    saver.wait()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_disk_full(tmp_path: Path, asynchronous: bool) -> None:
    with _tmpfs(tmp_path / "small", "1m") as root:
        (good,) = save(root, 4, 1)
        big = snapshot(World(), 4, 2)
        big.student["param.big"] = torch.zeros(500_000)
        saver = Saver(root, World(), 9, asynchronous)
        with pytest.raises(CheckpointError, match=r"student\.safetensors: cannot be written: No space left on device"):
            _save_and_wait(saver, big)
        assert [path.name for path in root.iterdir()] == [good.name]  # the space is given back
        saver.save(snapshot(World(), 4, 3))  # and the saver can go on
        saver.wait()
        expect(load(World(), root / "step_000000003", 4), 4, 0, 1, saved_by=1, step=3)
        expect(load(World(), good, 4), 4, 0, 1, saved_by=1, step=1)


def test_read_only(tmp_path: Path) -> None:
    with _tmpfs(tmp_path / "small", "1m") as root:
        (good,) = save(root, 4, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        with pytest.raises(CheckpointError, match=f"Read-only file system: '{root}"):
            save(root, 4, 2)
        expect(load(World(), good, 4), 4, 0, 1, saved_by=1, step=1)


def test_folder_without_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere; the read-only file system stands in for it")
    (good,) = save(tmp_path, 4, 1)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            save(tmp_path, 4, 2)
        expect(load(World(), good, 4), 4, 0, 1, saved_by=1, step=1)
    finally:
        tmp_path.chmod(0o700)
