"""Shards, stores and hashes: arithmetic, and what random centres depend on."""

from __future__ import annotations

import pytest
import torch

from partialkd.centres import store as store_module
from partialkd.centres.store import DTYPES, CentreStore
from partialkd.counter_random import hash_words
from partialkd.world.shard import local_rows, shard_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("classes", [1, 2, 10, 23])
def test_shards_are_a_partition(classes: int, size: int) -> None:
    shards = [shard_of(classes, rank, size) for rank in range(size)]
    assert [c for shard in shards for c in shard] == list(range(classes))
    lengths = [len(shard) for shard in shards]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1


def test_local_rows() -> None:
    owned, row = local_rows(torch.tensor([3, 4, 6, 7, 0]), range(4, 7))
    assert owned.tolist() == [False, True, True, False, False]
    assert row.tolist() == [0, 0, 2, 0, 0]


@pytest.mark.parametrize("size", [2, 3])
def test_random_centres_do_not_depend_on_the_shard(size: int) -> None:
    classes = 3000  # several blocks, cut in the middle
    whole = CentreStore.random(range(classes), classes, 4, torch.float32, CPU, seed=3)
    parts = [
        CentreStore.random(shard_of(classes, r, size), classes, 4, torch.float32, CPU, seed=3) for r in range(size)
    ]
    torch.testing.assert_close(torch.cat([part.unit for part in parts]), whole.unit, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([part.length for part in parts]), whole.length, rtol=0, atol=0)
    assert whole.unit.unique(dim=0).shape[0] == classes  # no two classes, and no two ranks, start alike
    assert not torch.equal(CentreStore.random(range(9), 9, 4, torch.float32, CPU, seed=4).unit, whole.unit[:9])
    assert whole.read(slice(None)).std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(("name", "tolerance"), [("fp32", 1e-6), ("bf16", 2**-8)])
def test_write_and_read(name: str, tolerance: float) -> None:
    store = CentreStore.empty(range(5), 5, 16, DTYPES[name], CPU)
    rows, centres = torch.tensor([4, 1]), torch.randn(2, 16)
    store.write(rows, centres)
    torch.testing.assert_close(store.read(rows), centres, rtol=tolerance, atol=tolerance * 4)
    assert store.read(torch.tensor([0, 2, 3])).abs().max() == 0
    assert centres.norm(dim=1).sub(1).abs().max() > 0.1  # the caller's tensor is untouched
    store.renormalise(torch.tensor([1]))
    assert store.read(torch.tensor([1])).norm().item() == pytest.approx(1, abs=tolerance)


def test_state_round_trip() -> None:
    store = CentreStore.random(range(2, 7), 9, 8, torch.bfloat16, CPU, seed=1)
    store.fill(torch.tensor([3]), torch.randn(1, 8))
    store.add_moment("momentum")
    store.moments["momentum"].normal_()
    other = CentreStore.empty(range(2, 7), 9, 8, torch.bfloat16, CPU)
    other.load_state(store.state())
    for name, value in store.state().items():
        torch.testing.assert_close(other.state()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(("saved", "loaded"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_state_of_another_precision_is_converted(saved: str, loaded: str) -> None:
    store, other = (
        CentreStore.random(range(40), 40, 16, DTYPES[name], CPU, seed) for seed, name in enumerate((saved, loaded))
    )
    store.length.mul_(torch.linspace(0.5, 90, 40))
    store.fill(torch.tensor([3]), torch.randn(1, 16))
    store.add_moment("momentum", torch.float32)
    store.moments["momentum"].normal_()
    other.load_state(store.state())
    torch.testing.assert_close(other.read(slice(None)), store.read(slice(None)), rtol=2**-7, atol=0)
    assert other.unit.dtype == DTYPES[loaded]
    norms = other.unit.float().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(40), rtol=0, atol=1e-6 if loaded == "fp32" else 2**-8)
    assert torch.equal(other.seen, store.seen)
    assert torch.equal(other.moments["momentum"], store.moments["momentum"])


def test_hash_is_uniform_over_steps_and_classes() -> None:
    words = torch.stack([hash_words(torch.arange(512), seed=1, step=step) for step in range(64)]).double() / 2**32
    assert words.mean().item() == pytest.approx(0.5, abs=0.01)
    for axis in (0, 1):
        assert words.mean(axis).sub(0.5).abs().max() < 6 * 0.29 / words.shape[axis] ** 0.5
    assert words.flatten().unique().numel() > 0.999 * words.numel()


def test_what_is_written_on_a_condition() -> None:
    """Every tensor, repeats among the rows."""
    for wanted in (False, True):
        store = CentreStore.random(range(6), 6, 4, torch.int8, CPU, 0)
        store.add_moment("first")
        before = {name: value.clone() for name, value in store.state().items()}
        rows = torch.tensor([2, 5, 2])
        with store.only_if(torch.tensor(wanted), rows):
            store.fill(rows, torch.eye(4)[[1, 3, 1]])
            store.moments["first"][rows] = 1.0
        for name, value in store.state().items():
            changed = (value != before[name]).view(6, -1).any(1).nonzero().squeeze(1).tolist()
            assert changed == ([2, 5] if wanted else []), name


def test_late_answers_whether_all_were_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: nobody waits, and an answer to what is no longer so is not listened to."""
    there = False
    monkeypatch.setattr(store_module, "to_host", lambda x: (x.clone(), lambda: there))
    store = CentreStore.empty(range(3), 3, 2, torch.float32, CPU, skip_unseen=True)
    before = store.kept(torch.tensor([1]))
    assert not store.everything_seen  # asked: no
    store.fill(slice(None), torch.ones(3, 2))
    there = True
    assert not store.everything_seen  # the old answer; asked again at the next call
    there = False
    assert not store.everything_seen
    store.put_back(torch.tensor([1]), before)  # a step is undone
    there = True
    assert not store.everything_seen
    store.fill(slice(None), torch.ones(3, 2))
    assert store.everything_seen


def test_a_state_with_unseen_centres_is_believed_by_a_store_that_has_seen_all() -> None:
    store, other = (CentreStore.random(range(4), 4, 2, torch.float32, CPU, 0, skip_unseen=True) for _ in range(2))
    store.fill(slice(None), torch.ones(4, 2))
    assert store.everything_seen
    store.load_state(other.state())
    assert not store.everything_seen
