"""Teacher centres: class means and classifier rows against dense references at world sizes 1, 2, 3; manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.ranks import RankFailure, run
from partialkd.centres.store import CentreStore
from partialkd.data.batch import FaceBatch
from partialkd.data.order.plan import SequentialPlan
from partialkd.errors import CheckpointError, TeacherError
from partialkd.teacher import centres as teacher_centres
from partialkd.teacher.centres import class_means, fill_means, load_centres, load_or_make, save_centres
from partialkd.teacher.classifier import classifier_rows, read_label_map, read_matrix
from partialkd.world.shard import shard_of
from partialkd.world.world import World

CLASSES, DIM, RECORDS = 7, 6, 23
LABELS = torch.randint(CLASSES - 1, (RECORDS,), generator=torch.Generator().manual_seed(0))  # the last has no record
IMAGES = torch.randn(RECORDS, DIM, generator=torch.Generator().manual_seed(1))
sizes = pytest.mark.parametrize("size", [1, 2, 3])
pytestmark = pytest.mark.distributed


def empty_store(world: World, dim: int = DIM) -> CentreStore:
    shard = shard_of(CLASSES, world.rank, world.size)
    return CentreStore.empty(shard, CLASSES, dim, torch.float32, world.device, skip_unseen=True)


def _means(world: World) -> tuple[Any, ...]:
    store, plan = empty_store(world), SequentialPlan(RECORDS, 4, world.rank, world.size)
    batches = []
    for step in range(plan.micro_steps):
        i = torch.from_numpy(plan.indices(0, step))
        batches.append(FaceBatch(IMAGES[i], LABELS[i], i, torch.zeros(len(i), dtype=torch.bool)))
    class_means(store, batches, lambda batch: 3 * batch.images, plan.local_batch, world, str)
    return store.read(slice(None)), store.seen, store.everything_seen


@sizes
def test_class_means(size: int) -> None:
    results = run(_means, size)
    means, seen = torch.cat([r[0] for r in results]), torch.cat([r[1] for r in results])
    unit = torch.nn.functional.normalize(IMAGES)
    for c in range(CLASSES - 1):
        torch.testing.assert_close(means[c], unit[c == LABELS].mean(0))
    assert seen.tolist() == [True] * (CLASSES - 1) + [False]
    assert means[-1].abs().max() == 0
    assert [r[2] for r in results] == [True] * (size - 1) + [False]  # the last class has no record


def _means_of_a_broken_teacher(world: World, value: float) -> str:
    """One record's embedding is `value` throughout; it is on the last rank, in its last batch."""
    plan = SequentialPlan(RECORDS, 4, world.rank, world.size)
    batches = []
    for step in range(plan.micro_steps):
        i = torch.from_numpy(plan.indices(0, step))
        images = torch.where(i[:, None] == RECORDS - 1, torch.tensor(value), IMAGES[i])
        batches.append(FaceBatch(images, LABELS[i], i, torch.zeros(len(i), dtype=torch.bool)))
    store = empty_store(world)
    with pytest.raises(TeacherError) as error:
        class_means(store, batches, lambda batch: batch.images, plan.local_batch, world, "record {}".format)
    assert not store.seen.any()
    return str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 0.0])
def test_an_embedding_that_no_mean_can_be_made_of_is_named(value: float) -> None:
    problem = f"rank 1: the teacher's embedding is zero or not finite: record {RECORDS - 1}"
    assert run(_means_of_a_broken_teacher, 2, value) == [problem] * 2


def _saved_with_nan(world: World, folder: Path) -> str:
    store = empty_store(world)
    store.fill(slice(None), torch.ones(len(store.shard), DIM))
    if CLASSES - 1 in store.shard:
        store.unit[-1, 3] = torch.nan
    with pytest.raises(CheckpointError) as error:
        save_centres(store, folder, {"how": "means"}, world)
    return str(error.value)


def test_centres_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    folder = tmp_path / "centres"
    problem = f"rank 1: {folder}: not written: NaN or infinity in the centres of classes {CLASSES - 1}"
    assert run(_saved_with_nan, 2, folder) == [problem] * 2
    assert not list(tmp_path.iterdir())


def test_means_are_written_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at once, in int8 too; rows of zeros at the ends of blocks stay unseen."""
    means = torch.randn(10, DIM, generator=torch.Generator().manual_seed(2))
    means[[2, 3, 9]] = 0
    stores = [CentreStore.empty(range(5, 15), 20, DIM, torch.int8, torch.device("cpu")) for _ in range(2)]
    for store, rows in zip(stores, (10, 3), strict=True):
        monkeypatch.setattr(teacher_centres, "WRITTEN_AT_ONCE", rows)
        fill_means(store, means)
        assert store.seen.tolist() == [row not in (2, 3, 9) for row in range(10)]
    assert all(torch.equal(value, stores[1].state()[key]) for key, value in stores[0].state().items())
    torch.testing.assert_close(stores[1].read(slice(None)), means, rtol=0.05, atol=0.02)


def _classifier(world: World, path: Path, label_map: str, doubled: bool) -> torch.Tensor:
    store = empty_store(world)
    classifier_rows(store, path, label_map, (lambda rows: 2 * rows) if doubled else (lambda rows: rows), world)
    return store.read(slice(None))


@sizes
@pytest.mark.parametrize("suffix", ["npy", "safetensors", "pt"])
def test_classifier_rows_in_the_order_of_the_label_map(size: int, suffix: str, tmp_path: Path) -> None:
    rows, order = torch.randn(CLASSES + 2, DIM), [3, -1, 0, 6, 5, 1, -1, 2, 4]
    path = tmp_path / f"classifier.{suffix}"
    if suffix == "npy":
        np.save(path, rows.numpy())
    elif suffix == "safetensors":
        save_file({"weight": rows}, path)
    else:
        torch.save({"weight": rows, "epoch": torch.tensor(3)}, path)
    (tmp_path / "map.txt").write_text("\n".join(map(str, order)) + "\n")
    got = torch.cat(run(_classifier, size, path, str(tmp_path / "map.txt"), True))
    for row, c in enumerate(order):
        if c >= 0:
            torch.testing.assert_close(got[c], 2 * rows[row])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("0 1 2 3 4 5", "a line for each of the 7 classifier rows, got 6"),
        ("0 1 2 3 4 5 5", "7 ids, 6 of them distinct"),
        ("0 1 2 3 4 5 7", "7 ids, 6 of them distinct and in range"),
        ("0 1 2 3 4 5 x", "one class id per line"),
    ],
)
def test_wrong_label_map(lines: str, said: str, tmp_path: Path) -> None:
    save_file({"weight": torch.randn(CLASSES, DIM)}, tmp_path / "c.safetensors")
    (tmp_path / "map.txt").write_text(lines.replace(" ", "\n"))
    with pytest.raises(RankFailure, match=said):
        run(_classifier, 2, tmp_path / "c.safetensors", str(tmp_path / "map.txt"), False)


@pytest.mark.parametrize("wrong", ["dimension", "nan", "missing"])
def test_wrong_classifier(wrong: str, tmp_path: Path) -> None:
    rows = torch.randn(CLASSES, DIM + (wrong == "dimension"))
    if wrong == "nan":
        rows[4, 2] = torch.nan
    if wrong != "missing":
        save_file({"weight": rows}, tmp_path / "c.safetensors")
    with pytest.raises(RankFailure, match=r"must have 6 numbers|zero or not finite|cannot be read"):
        run(_classifier, 2, tmp_path / "c.safetensors", "identity", False)


def test_pickled_classifier_is_not_executed(tmp_path: Path) -> None:
    torch.save({"weight": torch.randn(3, 3), "evil": np.dtype}, tmp_path / "c.pt")
    with pytest.raises(TeacherError, match=r"c\.pt: cannot be read: it holds objects that are not tensors"):
        read_matrix(tmp_path / "c.pt")


def _cached(world: World, folder: Path, teacher: str) -> tuple[torch.Tensor, int]:
    calls = 0

    def make(store: CentreStore) -> None:
        nonlocal calls
        calls += 1
        store.fill(slice(None), torch.full((len(store.shard), DIM), float(world.rank + 1)))

    store = empty_store(world)
    load_or_make(store, folder, {"teacher": teacher}, make, world)
    return store.read(slice(None)), calls


def test_saved_centres_are_reused_for_the_same_teacher_only(tmp_path: Path) -> None:
    first = run(_cached, 2, tmp_path / "centres", "a")
    again = run(_cached, 3, tmp_path / "centres", "a")  # at another world size
    other = run(_cached, 2, tmp_path / "centres", "b")
    assert [r[1] for r in first + again + other] == [1, 1, 0, 0, 0, 1, 1]
    torch.testing.assert_close(torch.cat([r[0] for r in again]), torch.cat([r[0] for r in first]))


def test_centres_of_images_decoded_otherwise_are_made_again(tmp_path: Path) -> None:
    """And, where a student has begun with them, are an error; older centres do not say it and are believed."""
    calls: list[str] = []

    def make(store: CentreStore) -> None:
        calls.append("made")
        store.fill(slice(None), torch.ones(len(store.shard), DIM))

    world, folder = World(), tmp_path / "centres"
    for facts in ({}, {"decoding": 2}, {"decoding": 2}):
        load_or_make(empty_store(world), folder, {"teacher": "a", **facts}, make, world)
    assert calls == ["made"]
    save_centres(empty_store(world), folder, {"teacher": "a", "decoding": 2}, world)
    with pytest.raises(TeacherError, match="made from decoding 2, now 3"):
        load_or_make(empty_store(world), folder, {"teacher": "a", "decoding": 3}, make, world, begun=True)
    load_or_make(empty_store(world), folder, {"teacher": "a", "decoding": 3}, make, world)
    assert calls == ["made", "made"]


def test_a_label_map_of_another_system(tmp_path: Path) -> None:
    """A byte order mark and line ends of Windows; ids of thousands of digits are refused by their line."""
    (tmp_path / "map.txt").write_bytes("\ufeff2\r\n-1\r\n0\r\n1\r\n".encode())
    assert read_label_map(str(tmp_path / "map.txt"), 4, 3).tolist() == [2, -1, 0, 1]
    (tmp_path / "map.txt").write_text(f"0\n{'9' * 5000}\n")
    with pytest.raises(
        TeacherError, match=rf"map\.txt: line 2: must be one class id per line, or -1, got '{'9' * 40}'$"
    ):
        read_label_map(str(tmp_path / "map.txt"), 2, 2)


def test_trained_centres_belong_to_the_network_beside_them(tmp_path: Path) -> None:
    """Those of another job, put there, would be taken for this one's; earlier versions wrote no record."""
    world = World()
    store = empty_store(world)
    fill_means(store, torch.rand(len(store.shard), store.dim) + 0.1)
    made = {"made_from": "this job"}
    save_centres(store, tmp_path / "new", made, world)
    save_centres(store, tmp_path / "old", {}, world)
    for folder, facts in (("new", made), ("new", {}), ("old", made)):
        again = empty_store(world)
        load_centres(again, tmp_path / folder, lambda rows: rows, world, facts)
        assert again.seen.all()
    with pytest.raises(TeacherError, match="new: these centres were not made together with the network beside them"):
        load_centres(empty_store(world), tmp_path / "new", lambda rows: rows, world, {"made_from": "another job"})
