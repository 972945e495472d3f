"""Classifiers as arcface_torch leaves them, a file a rank, as centres at any number of ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.ranks import run
from partialkd.centres.store import CentreStore
from partialkd.errors import TeacherError
from partialkd.teacher.classifier import classifier_rows, file_digest, read_shards
from partialkd.world.shard import shard_of
from partialkd.world.world import World

CLASSES, DIM, RANKS = 8, 6, 3  # of them: 3 + 3 + 2 rows
ROWS = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
Write = Callable[[Path, int, Tensor], None]


def checkpoint(folder: Path, rank: int, rows: Tensor) -> None:
    """With everything that `save_all_states` keeps."""
    network, weight = torch.nn.Linear(3, 3), torch.nn.Parameter(rows.clone())
    groups: list[dict[str, Any]] = [{"params": network.parameters()}, {"params": [weight]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    (network(torch.ones(1, 3)).sum() + weight.sum()).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=10, power=2)
    content: dict[str, Any] = {
        "epoch": 3, "global_step": 77, "state_dict_backbone": network.state_dict(),
        "state_dict_softmax_fc": {"weight": rows}, "state_optimizer": optimizer.state_dict(),
        "state_lr_scheduler": scheduler.state_dict(),
    }  # fmt: skip
    torch.save(content, folder / f"checkpoint_gpu_{rank}.pt")


def state_dict(folder: Path, rank: int, rows: Tensor) -> None:
    """Sampled centres keep their momentum and the rows of the last step in it, too."""
    content = {"weight": rows, "weight_mom": torch.zeros_like(rows), "weight_activated": rows[:1]}
    torch.save(content, folder / f"softmax_fc_gpu_{rank}.pt")


def matrix(folder: Path, rank: int, rows: Tensor) -> None:
    torch.save(rows, folder / f"rank_{rank}_softmax_weight.pt")
    torch.save(torch.zeros_like(rows), folder / f"rank_{rank}_softmax_weight_mom.pt")


def write(folder: Path, one: Write = state_dict, ranks: int = RANKS) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save({"conv1.weight": torch.zeros(4, 4)}, folder / "model.pt")
    for rank in range(ranks):
        mine = shard_of(CLASSES, rank, ranks)
        one(folder, rank, ROWS[mine.start : mine.stop].clone())
    return folder


@pytest.mark.parametrize("one", [checkpoint, state_dict, matrix])
def test_rows_in_the_order_of_class_ids(one: Write, tmp_path: Path) -> None:
    assert torch.equal(torch.cat(read_shards(write(tmp_path, one))), ROWS)


def test_the_order_of_ranks_is_that_of_numbers(tmp_path: Path) -> None:
    """Not of names: 10 comes after 9."""
    rows = torch.arange(12.0)[:, None]
    for rank in range(12):
        matrix(tmp_path, rank, rows[rank : rank + 1])
    assert torch.equal(torch.cat(read_shards(tmp_path)), rows)


@pytest.mark.parametrize("stray", ["softmax_fc_gpu_0.old.pt", "softmax_fc_gpu_1_copy.pt", "softmax_fc_gpu_2.pt.bak"])
def test_copies_beside_the_files_are_no_ranks(stray: str, tmp_path: Path) -> None:
    torch.save({}, write(tmp_path) / stray)
    assert torch.equal(torch.cat(read_shards(tmp_path)), ROWS)


def _centres(world: World, folder: Path, label_map: str) -> Tensor:
    shard = shard_of(CLASSES, world.rank, world.size)
    store = CentreStore.empty(shard, CLASSES, DIM, torch.float32, world.device)
    classifier_rows(store, folder, label_map, lambda rows: rows, world)
    return store.read(slice(None))


@pytest.mark.distributed
def test_they_become_the_centres_of_another_number_of_ranks(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", checkpoint)
    torch.testing.assert_close(torch.cat(run(_centres, 2, folder, "identity")), ROWS)
    order = [5, 2, 7, 0, 1, 6, 4, 3]
    (tmp_path / "map.txt").write_text("\n".join(map(str, order)))
    got = _centres(World(), folder, str(tmp_path / "map.txt"))
    torch.testing.assert_close(got[order], ROWS)


def test_the_digest_is_that_of_the_classifiers_files(tmp_path: Path) -> None:
    before = file_digest(str(write(tmp_path / "a")))
    assert file_digest(str(write(tmp_path / "b"))) == before
    torch.save({}, tmp_path / "b" / "model.pt")
    assert file_digest(str(tmp_path / "b")) == before
    state_dict(tmp_path / "b", 1, torch.ones(3, DIM))
    assert file_digest(str(tmp_path / "b")) != before


class _Run:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "softmax_fc_gpu_1.pt").unlink(), r"softmax_fc_gpu_1\.pt: cannot be read: .*No such file"),
        (lambda f: (f / "softmax_fc_gpu_0.pt").unlink(), r"softmax_fc_gpu_0\.pt: cannot be read: .*No such file"),
        (lambda f: state_dict(f, 0, ROWS[:2]), r"gpu_2\.pt: 2 of the 7 .* rank 2's of 3|gpu_0\.pt: 3 of the 7 rows"),
        (lambda f: state_dict(f, 1, ROWS[:3, :4]), r"gpu_1\.pt: 3 of the 8 rows of 6 numbers .*got \(3, 4\)"),
        (lambda f: matrix(f, 0, ROWS), r"must hold a classifier's files of one kind \(checkpoint_gpu_0\.pt, .*got 2"),
        (lambda f: torch.save({"fc": ROWS}, f / "softmax_fc_gpu_2.pt"), r"gpu_2\.pt: must hold the rows of a class"),
        (lambda f: torch.save({"weight": _Run()}, f / "softmax_fc_gpu_2.pt"), "it holds objects that are not tensors"),
        (lambda f: [path.unlink() for path in f.glob("softmax*")], r"files of one kind .*got 0 kinds"),
    ],
)
def test_what_is_not_such_a_classifier_is_refused(change: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    change(write(tmp_path))
    with pytest.raises(TeacherError, match=said):
        read_shards(tmp_path)


def test_a_missing_last_rank_is_found_by_the_number_of_classes(tmp_path: Path) -> None:
    (write(tmp_path) / "softmax_fc_gpu_2.pt").unlink()
    with pytest.raises(TeacherError, match=r"identity: must name each class in \[0, 8\) once .* got 6 ids"):
        _centres(World(), tmp_path, "identity")
