"""Checkpoints: any world size to any other, complete or invisible, one rank's failure is everybody's error."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run
from torch import Tensor

from partialkd import checkpoint, sharded_file
from partialkd.centres.shard import shard_of
from partialkd.checkpoint import Snapshot
from partialkd.dist import World
from partialkd.errors import CheckpointError


def _full(num_classes: int, step: int = 0) -> dict[str, Tensor]:
    """Every centre tensor of all classes: several types and shapes, no two rows alike."""
    draw = torch.Generator().manual_seed(step)
    return {
        "unit": torch.randn(num_classes, 6, generator=draw),
        "momentum/sgd": torch.randn(num_classes, 6, generator=draw).bfloat16(),
        "codes": torch.randint(-128, 128, (num_classes, 2, 3), generator=draw, dtype=torch.int8),
        "seen": torch.rand(num_classes, generator=draw) > 0.5,
        "count": torch.arange(num_classes) + step,
    }


def _student(step: int = 0) -> dict[str, Tensor]:
    flat = torch.arange(12.0) + step
    # Views of one memory, as ZeRO's parameters are; a transposed one; a number.
    return {"param.a": flat[:6].view(2, 3), "param.b": flat[4:].view(4, 2).T, "counter.steps": torch.tensor(step)}


def _snapshot(world: World, num_classes: int, step: int = 0) -> Snapshot:
    shard = shard_of(num_classes, world.rank, world.size)
    return Snapshot(
        step=step,
        student=_student(step) if world.is_main else {},
        local={
            "buffer.mean": torch.full((3,), float(world.rank)),
            "buffer.count": torch.tensor(10 + world.rank),
            "rng.cpu": torch.full((4,), world.rank, dtype=torch.uint8),
        },
        centres={name: x[shard.start : shard.stop] for name, x in _full(num_classes, step).items()},
        shard=shard,
        num_classes=num_classes,
        progress={"epoch": 3, "phase": "student", "losses": [0.5, 1e-7]},
    )


def _save(world: World, root: Path, num_classes: int, step: int = 0, piece_bytes: int = 50) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_file, "PIECE_BYTES", piece_bytes)
        return str(checkpoint.save(root, _snapshot(world, num_classes, step), world, keep=9))


def _load(world: World, path: Path, num_classes: int) -> dict[str, Any]:
    got = checkpoint.load(path, world, shard_of(num_classes, world.rank, world.size), num_classes)
    return vars(got)


def _resave(world: World, path: Path, root: Path, num_classes: int) -> None:
    snapshot = checkpoint.load(path, world, shard_of(num_classes, world.rank, world.size), num_classes)
    snapshot.local = _snapshot(world, num_classes).local
    checkpoint.save(root, snapshot, world, keep=9)


def _expect(results: list[dict[str, Any]], num_classes: int, saved_by: int, step: int) -> None:
    full = _full(num_classes, step)
    for rank, got in enumerate(results):
        shard = shard_of(num_classes, rank, len(results))
        assert got["shard"] == shard
        assert got["step"] == step
        assert got["progress"] == {"epoch": 3, "phase": "student", "losses": [0.5, 1e-7]}
        _expect_local(got["local"], rank, len(results), saved_by)
        for given, expected in ((got["student"], _student(step)), (got["centres"], _full(num_classes, step))):
            assert set(given) == set(expected)
        for name, value in _student(step).items():
            torch.testing.assert_close(got["student"][name], value, rtol=0, atol=0)
        for name, value in full.items():
            assert got["centres"][name].dtype == value.dtype
            torch.testing.assert_close(got["centres"][name], value[shard.start : shard.stop], rtol=0, atol=0)


def _expect_local(local: dict[str, Tensor], rank: int, world_size: int, saved_by: int) -> None:
    """A rank's own, or what the mean over the saved ranks makes of it for all."""
    same = world_size == saved_by
    assert set(local) == {"buffer.mean", "buffer.count"} | ({"rng.cpu"} if same else set())
    assert local["buffer.mean"].tolist() == [rank if same else (saved_by - 1) / 2] * 3
    assert local["buffer.count"].item() == 10 + (rank if same else 0)
    assert not same or local["rng.cpu"].tolist() == [rank] * 4


@pytest.mark.distributed
@pytest.mark.parametrize(("num_classes", "piece_bytes"), [(10, 50), (11, 64 << 20), (2, 50), (1, 1)])
def test_any_world_size_to_any_other(tmp_path: Path, num_classes: int, piece_bytes: int) -> None:
    """3 -> 2 -> 1 -> 4, with uneven shards (10 = 4 + 3 + 3) and ranks without classes."""
    first = Path(run(_save, 3, tmp_path / "by3", num_classes, 7, piece_bytes)[0])
    _expect(run(_load, 3, first, num_classes), num_classes, saved_by=3, step=7)
    _expect(run(_load, 2, first, num_classes), num_classes, saved_by=3, step=7)
    run(_resave, 2, first, tmp_path / "by2", num_classes)
    _resave(World(), tmp_path / "by2" / first.name, tmp_path / "by1", num_classes)
    single = _load(World(), tmp_path / "by1" / first.name, num_classes)
    _expect([single], num_classes, saved_by=1, step=7)
    _expect(run(_load, 4, tmp_path / "by1" / first.name, num_classes), num_classes, saved_by=1, step=7)


def test_only_overlapping_pieces_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_file, "PIECE_BYTES", 4 * 24)
    rows = {"unit": _full(10)["unit"]}
    sharded_file.write_rows(tmp_path, rows, range(10), world_size=1)
    keys = set(sharded_file._Reader(tmp_path).read_metadata().state_dict_metadata)
    assert keys == {"unit/000000000-000000004", "unit/000000004-000000008", "unit/000000008-000000010"}
    data = (tmp_path / "__0_0.distcp").read_bytes()
    (tmp_path / "__0_0.distcp").write_bytes(bytes(len(data) // 3) + data[len(data) // 3 :])  # the first piece is gone
    torch.testing.assert_close(sharded_file.read_rows(tmp_path, range(5, 9))["unit"], rows["unit"][5:9])
    with pytest.raises(CheckpointError):
        sharded_file.read_rows(tmp_path, range(3, 9))


def test_missing_classes_are_named(tmp_path: Path) -> None:
    sharded_file.write_rows(tmp_path, {"unit": torch.zeros(4, 2)}, range(4), world_size=1)
    with pytest.raises(CheckpointError, match=r"'unit': 1 of the 3 classes of range\(3, 6\)"):
        sharded_file.read_rows(tmp_path, range(3, 6))


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def test_metadata_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(CheckpointError, match=r"names (posix|nt)\.mkdir"):
        sharded_file.read_rows(tmp_path, range(3))
    assert not (tmp_path / "evil").exists()


def test_newest_ignores_what_is_not_complete(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nothing") is None
    world = World()
    good = Path(_save(world, tmp_path, 4, step=5))
    truncated, without, other, foreign = (Path(_save(world, tmp_path, 4, step=step)) for step in (6, 7, 8, 9))
    assert checkpoint.newest(tmp_path) == foreign
    with (truncated / "student.safetensors").open("ab") as stream:
        stream.truncate(20)
    (without / "manifest.json").unlink()
    (other / "centres" / "__0_0.distcp").unlink()
    manifest = json.loads((foreign / "manifest.json").read_text())
    (foreign / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    (tmp_path / ".step_000000010.partial").mkdir()
    (tmp_path / "step_final").mkdir()
    assert checkpoint.newest(tmp_path) == good
    for path, reason in (
        (truncated, "student.safetensors: must have [0-9]+ bytes, got 20"),
        (without, "manifest.json"),
        (other, "__0_0.distcp"),
        (foreign, "format must be 1, got 99"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            checkpoint.load(path, world, range(4), 4)


def test_the_newest_are_kept_and_leftovers_removed(tmp_path: Path) -> None:
    (tmp_path / ".step_000000001.partial" / "local").mkdir(parents=True)  # of a save that was killed
    world = World()
    for step in (10, 20, 30, 25):
        checkpoint.save(tmp_path, _snapshot(world, 4, step), world, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000025", "step_000000030"]
    checkpoint.save(tmp_path, _snapshot(world, 4, 12), world, keep=1)  # a run taken up from an older checkpoint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000012", "step_000000030"]


def test_same_step_is_replaced(tmp_path: Path) -> None:
    world = World()
    for epoch in (1, 2):
        snapshot = _snapshot(world, 4, 10)
        snapshot.progress = {"epoch": epoch}
        path = checkpoint.save(tmp_path, snapshot, world, keep=1)
    assert checkpoint.load(path, world, range(4), 4).progress == {"epoch": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000010"]


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    path = Path(_save(World(), tmp_path, 4))
    with pytest.raises(CheckpointError, match="must hold the centres of 5 classes, got 4"):
        checkpoint.load(path, World(), range(5), 5)


def test_progress_must_be_json(tmp_path: Path) -> None:
    snapshot = _snapshot(World(), 4)
    snapshot.progress = {"loss": float("nan")}
    with pytest.raises(CheckpointError, match="JSON"):
        checkpoint.save(tmp_path, snapshot, World(), keep=1)


# ------------------------------------------------------------------------------------------ failing ranks


@contextmanager
def _no_file_larger_than(size: int) -> Iterator[None]:
    """The operating system refuses longer files to this process: a full disk that needs no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _save_with(world: World, root: Path, fault: str) -> tuple[str, str]:
    snapshot = _snapshot(world, 10, step=20)
    limit = resource.RLIM_INFINITY
    if world.rank == 1 and fault == "local":
        snapshot.local["rng.cpu"], limit = torch.zeros(40_000, dtype=torch.uint8), 20_000
    if fault == "centres":
        snapshot.centres["wide"] = torch.zeros(len(snapshot.shard), 5000)
        limit = 20_000 if world.rank == 1 else limit
    if world.rank == 0 and fault == "student":
        snapshot.student["param.c"], limit = torch.zeros(10_000), 20_000
    if world.rank == 1 and fault == "shard":
        snapshot.shard = range(5, 9)
    if world.rank == 1 and fault == "rows":
        snapshot.centres["unit"] = snapshot.centres["unit"][1:]
    if world.rank == 1 and fault == "kinds":
        snapshot.centres["seen"] = snapshot.centres["seen"].int()
    with _no_file_larger_than(limit):
        try:
            return "saved", str(checkpoint.save(root, snapshot, world, keep=1))
        except CheckpointError as error:
            return "CheckpointError", str(error)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("local", r"^rank 1: saving .*File too large"),
        ("centres", r"^rank 1: saving .*(File too large|unexpected pos)"),
        ("student", r"^rank 0: saving .*File too large"),
        ("shard", r"^rank 1: .*shard must be range\(5, 10\) of 10 classes, got range\(5, 9\)"),
        ("rows", r"^rank 1: .*'unit' must have 5 rows, got 4"),
        ("kinds", r"^rank 1: .*must be alike on all ranks"),
    ],
)
def test_a_failing_save_is_everybodys_error(tmp_path: Path, fault: str, reason: str) -> None:
    before = Path(run(_save, 2, tmp_path, 10, 10)[0])
    results = run(_save_with, 2, tmp_path, fault)
    assert results[0] == results[1]
    kind, message = results[0]
    assert kind == "CheckpointError"
    assert re.search(reason, message), message
    assert [path.name for path in tmp_path.iterdir()] == [before.name]  # nothing left, the earlier one stands
    assert checkpoint.newest(tmp_path) == before
    assert run(_save_with, 2, tmp_path, "none")[0] == ("saved", str(tmp_path / "step_000000020"))


def _load_error(world: World, path: Path, num_classes: int) -> str:
    try:
        _load(world, path, num_classes)
    except CheckpointError as error:
        return str(error)
    return "loaded"


@pytest.mark.distributed
def test_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    results = run(_save_with, 2, tmp_path / "runs", "none")
    assert results[0] == results[1]
    assert results[0][0] == "CheckpointError"


@pytest.mark.distributed
def test_damage_that_one_rank_meets_is_everybodys_error(tmp_path: Path) -> None:
    path = Path(run(_save, 2, tmp_path, 10, 10)[0])
    data = path / "centres" / "__1_0.distcp"
    data.write_bytes(bytes(data.stat().st_size))  # same size, so only its reader notices
    results = run(_load_error, 2, path, 10)
    assert results[0] == results[1]
    assert results[0].startswith("rank 1: loading ")
