"""Checkpoints: any world size to any other, which are kept, which are found; one rank's failure is everybody's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from helpers.ranks import run
from helpers.snapshots import expect, full_centres, load, no_file_larger_than, save, snapshot
from partialkd import checkpoint
from partialkd.checkpoint.saver import Saver
from partialkd.checkpoint.snapshot import Snapshot
from partialkd.errors import CheckpointError
from partialkd.storage import sharded_file
from partialkd.world.world import World


def _save(world: World, root: Path, num_classes: int, step: int = 0, piece_bytes: int = 120) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_file, "PIECE_BYTES", piece_bytes)
        return str(Saver(root, world, keep=9).save(snapshot(world, num_classes, step)))


def _resave(world: World, path: Path, root: Path, num_classes: int) -> None:
    loaded = load(world, path, num_classes)
    loaded.local = snapshot(world, num_classes).local
    Saver(root, world, keep=9).save(loaded)


def _expect(results: list[Snapshot], num_classes: int, saved_by: int, step: int) -> None:
    for rank, got in enumerate(results):
        expect(got, num_classes, rank, len(results), saved_by, step)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("num_classes", "piece_bytes"), [(10, 120), (11, 64 << 20), (2, 120), (1, 1)])
def test_any_world_size_to_any_other(tmp_path: Path, num_classes: int, piece_bytes: int) -> None:
    """3 -> 2 -> 1 -> 4, with uneven shards (10 = 4 + 3 + 3) and ranks without classes."""
    first = Path(run(_save, 3, tmp_path / "by3", num_classes, 7, piece_bytes)[0])
    _expect(run(load, 3, first, num_classes), num_classes, saved_by=3, step=7)
    _expect(run(load, 2, first, num_classes), num_classes, saved_by=3, step=7)
    run(_resave, 2, first, tmp_path / "by2", num_classes)
    _resave(World(), tmp_path / "by2" / first.name, tmp_path / "by1", num_classes)
    _expect([load(World(), tmp_path / "by1" / first.name, num_classes)], num_classes, saved_by=1, step=7)
    _expect(run(load, 4, tmp_path / "by1" / first.name, num_classes), num_classes, saved_by=1, step=7)


# -------------------------------------------------------------------------------------------- found and kept


def _names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_newest_ignores_what_is_not_complete(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nothing") is None
    good, truncated, without, other = save(tmp_path, 4, 5, 6, 7, 8)
    assert checkpoint.newest(tmp_path) == other
    with (truncated / "student.safetensors").open("ab") as stream:
        stream.truncate(20)
    (without / "manifest.json").unlink()
    (other / "centres" / "000000000-000000004.safetensors").unlink()
    (tmp_path / ".step_000000010.0a0b0c0d.partial").mkdir()
    (tmp_path / "step_final").mkdir()
    (tmp_path / "step_000000012.1").mkdir()  # moved aside
    (tmp_path / "step_000000013").write_text("not a folder")
    assert checkpoint.newest(tmp_path) == good
    for path, reason in (
        (truncated, "student.safetensors: must have [0-9]+ bytes, got 20"),
        (without, "manifest.json: cannot be read: No such file"),
        (other, "000000004.safetensors: cannot be read: No such file"),
        (tmp_path / "step_000000013", "manifest.json: cannot be read: Not a directory"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            load(World(), path, 4)


def test_the_newest_are_kept_and_leftovers_removed(tmp_path: Path) -> None:
    (tmp_path / ".step_000000001.0a0b0c0d.partial" / "local").mkdir(parents=True)  # of a save that was killed
    saver = Saver(tmp_path, World(), keep=2)
    for step in (10, 20, 30, 25):
        saver.save(snapshot(World(), 4, step))
    assert _names(tmp_path) == ["step_000000025", "step_000000030"]
    Saver(tmp_path, World(), keep=1).save(snapshot(World(), 4, 12))  # a run taken up from an older checkpoint
    assert _names(tmp_path) == ["step_000000012", "step_000000030"]


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    assert checkpoint.best(tmp_path) is None
    saver = Saver(tmp_path, World(), keep=1, keep_best=True)
    kept = []
    for step, score in ((1, None), (2, 0.5), (3, 0.2), (4, 0.3), (5, None), (6, 0.2), (7, -1.0), (8, 0.0)):
        saver.save(snapshot(World(), 4, step), score)
        kept.append([int(name[5:]) for name in _names(tmp_path)])
    assert kept == [[1], [2], [3], [3, 4], [3, 5], [6], [7], [7, 8]]  # of equal ones the newest
    best = checkpoint.best(tmp_path)
    assert best == tmp_path / "step_000000007"
    assert checkpoint.newest(tmp_path) == tmp_path / "step_000000008"
    expect(load(World(), best, 4), 4, 0, 1, saved_by=1, step=7)


def test_a_score_that_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="score must be a finite number, got nan"):
        Saver(tmp_path, World(), keep=1).save(snapshot(World(), 4), score=float("nan"))


def test_the_same_step_again_takes_a_name_of_its_own(tmp_path: Path) -> None:
    """So that at no moment neither of the two is there; afterwards the earlier one is removed."""
    saver = Saver(tmp_path, World(), keep=2)
    paths = []
    for epoch in (1, 2, 3):
        one = snapshot(World(), 4, 10)
        one.progress = {"epoch": epoch}
        paths.append(saver.save(one))
        assert checkpoint.newest(tmp_path) == paths[-1]
        assert load(World(), paths[-1], 4).progress == {"epoch": epoch}
        assert _names(tmp_path) == [paths[-1].name]
    assert [path.name for path in paths] == ["step_000000010", "step_000000010-2", "step_000000010-3"]


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 4, 0)
    with pytest.raises(CheckpointError, match="must hold the centres of 5 classes, got 4"):
        load(World(), path, 5)


def test_progress_must_be_json(tmp_path: Path) -> None:
    one = snapshot(World(), 4)
    one.progress = {"loss": float("nan")}
    with pytest.raises(CheckpointError, match="JSON"):
        Saver(tmp_path, World(), keep=1).save(one)


# ------------------------------------------------------------------------------------------ failing ranks


def _save_with(world: World, root: Path, fault: str, asynchronous: bool = False) -> tuple[str, str]:
    one = snapshot(world, 10, step=20)
    limit = 1 << 40
    if world.rank == 1 and fault == "local":
        one.local["rng.cpu"], limit = torch.zeros(40_000, dtype=torch.uint8), 20_000
    if fault == "centres":
        one.centres["wide"] = torch.zeros(len(one.shard), 5000)
        limit = 20_000 if world.rank == 1 else limit
    if world.rank == 0 and fault == "student":
        one.student["param.c"], limit = torch.zeros(10_000), 20_000
    if world.rank == 1 and fault == "shard":
        one.shard = range(5, 9)
    if world.rank == 1 and fault == "rows":
        one.centres["unit"] = one.centres["unit"][1:]
    if world.rank == 1 and fault == "kinds":
        one.centres["seen"] = one.centres["seen"].int()
    saver = Saver(root, world, 1, asynchronous)
    with no_file_larger_than(limit):
        try:
            path = saver.save(one)
            saver.wait()
            return "saved", str(path)
        except CheckpointError as error:
            return "CheckpointError", str(error)


@pytest.mark.distributed
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("local", r"^rank 1: saving step 20: .*local/00001.safetensors: cannot be written: File too large"),
        ("centres", r"^rank 1: saving step 20: .*000000005-000000010.safetensors: cannot be written: File too large"),
        ("student", r"^rank 0: saving step 20: .*student.safetensors: cannot be written: File too large"),
        ("shard", r"^rank 1: .*shard must be range\(5, 10\) of 10 classes, got range\(5, 9\)"),
        ("rows", r"^rank 1: .*'unit' must have 5 rows, got 4"),
        ("kinds", r"^rank 1: .*must be alike on all ranks"),
    ],
)
def test_a_failing_save_is_everybodys_error(tmp_path: Path, fault: str, reason: str, asynchronous: bool) -> None:
    before = Path(run(_save, 2, tmp_path, 10, 10)[0])
    results = run(_save_with, 2, tmp_path, fault, asynchronous)
    assert results[0] == results[1]
    kind, message = results[0]
    assert kind == "CheckpointError"
    assert re.search(reason, message), message
    assert _names(tmp_path) == [before.name]  # nothing left, the earlier one stands
    assert checkpoint.newest(tmp_path) == before
    assert run(_save_with, 2, tmp_path, "none", asynchronous)[0] == ("saved", str(tmp_path / "step_000000020"))


@pytest.mark.distributed
def test_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    results = run(_save_with, 2, tmp_path / "runs", "none")
    assert results[0] == results[1]
    assert results[0][0] == "CheckpointError"
    assert re.search(r"^rank 0: saving step 20: .*/runs", results[0][1])


def test_full_centres_differ_by_step() -> None:
    """The tests above would not see a checkpoint of another step otherwise."""
    assert not torch.equal(full_centres(4, 1)["unit"], full_centres(4, 2)["unit"])
