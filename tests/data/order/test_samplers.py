"""Orders: what each reads how often, in which company, the same at every world size and from any position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from partialkd.config import DataConfig, PartConfig
from partialkd.data.order.orders import (
    BalancedOrder,
    BlockOrder,
    GlobalOrder,
    HalfPKOrder,
    Order,
    PKOrder,
    check_positives,
    make_order,
)
from partialkd.data.order.plan import BatchCut, TrainingPlan
from partialkd.data.order.readahead import ReadingAhead, make_plan
from partialkd.data.sources.synthetic import SyntheticSource
from partialkd.errors import ConfigError

BATCH = 12


class Labelled(SyntheticSource):
    """Nothing but labels; notes what is announced."""

    def __init__(self, labels: Sequence[int] | np.ndarray, num_classes: int, sizes: tuple[int, ...] = ()) -> None:
        super().__init__(num_classes, len(labels), 16)
        self._all, self.sizes = np.asarray(labels, dtype=np.int64), sizes or (len(labels),)
        self.announced: list[tuple[int, int]] = []

    def labels(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._all[start:stop]

    def readahead(self, start: int, stop: int) -> None:
        self.announced.append((start, stop))


# Images an identity: none, one, two, ... of classes 0..9; in the order of the class ids, and mixed.
COUNTS = np.array([0, 1, 2, 3, 5, 8, 13, 4, 4, 20])
ASCENDING = np.repeat(np.arange(10), COUNTS)
MIXED = np.random.default_rng(0).permutation(ASCENDING)


def orders(labels: np.ndarray = MIXED, seed: int = 3) -> dict[str, Order]:
    source = Labelled(labels, 10)
    n = len(labels)
    return {
        "global": GlobalOrder([n], [1.0], seed=seed),
        "weights": GlobalOrder([20, 30, 10], [2.0, 0.5, 1.3], seed=seed),
        "blocks": BlockOrder([20, 33, 7], [1.0, 1.0, 1.0], seed=seed, block=4, group=3),
        "weighted blocks": BlockOrder([20, 33, 7], [2.0, 0.5, 1.0], seed=seed, block=4, group=3),
        "balanced": BalancedOrder(source, seed, BATCH),
        "pk": PKOrder(source, seed, BATCH, images_per_identity=3),
        "half_pk": HalfPKOrder(source, seed, BATCH, images_per_identity=3),
    }


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    return order.records(epoch, np.arange(order.length))


@pytest.mark.parametrize("kind", list(orders()))
def test_ranks_and_micro_steps_only_cut_the_order(kind: str) -> None:
    """At every world size and accumulation, asked for in any sequence."""
    for epoch in (4, 0):
        expected = epoch_of(orders()[kind], epoch)
        for world_size, accumulation in ((1, 1), (2, 1), (3, 2), (4, 3), (12, 1)):
            order = orders()[kind]
            plans = [
                TrainingPlan(60, BatchCut(BATCH, accumulation, rank, world_size), 3, flip=True, order=order)
                for rank in range(world_size)
            ]
            steps = range(plans[0].micro_steps)
            assert len(steps) == order.length // BATCH * accumulation == plans[0].steps * accumulation
            parts = {
                (step, rank): plans[rank].indices(epoch, step) for step in reversed(steps) for rank in range(len(plans))
            }
            together = np.concatenate([parts[step, rank] for step in steps for rank in range(world_size)])
            assert together.dtype == np.int64
            np.testing.assert_array_equal(together, expected[: len(together)])


@pytest.mark.parametrize("kind", list(orders()))
def test_seeds_and_epochs_differ(kind: str) -> None:
    order = orders()[kind]
    assert (epoch_of(order, 0) != epoch_of(order, 1)).mean() > 0.5
    assert (epoch_of(order, 0) != epoch_of(orders(seed=4)[kind], 0)).mean() > 0.5


@pytest.mark.parametrize("kind", ["global", "blocks"])
def test_an_epoch_is_every_record_once(kind: str) -> None:
    order = orders()[kind]
    assert order.length == 60
    for epoch in range(3):
        assert np.array_equal(np.sort(epoch_of(order, epoch)), np.arange(60))


# --------------------------------------------------------------------------------------------------- weights


def test_weights_are_shares_and_every_record_has_its_turn() -> None:
    """2.0: each twice; 0.5: each once in two epochs; 1.3: 13 of 10, none more than once more often than another."""
    order = GlobalOrder([20, 30, 10], [2.0, 0.5, 1.3], seed=3)
    assert order.length == 40 + 15 + 13
    total = np.zeros(60, dtype=int)
    for epoch in range(6):
        counts = np.bincount(epoch_of(order, epoch), minlength=60)
        assert [counts[:20].sum(), counts[20:50].sum(), counts[50:].sum()] == [40, 15, 13]
        assert (counts[:20] == 2).all()
        total += counts
        for part in (total[20:50], total[50:]):
            assert part.max() - part.min() <= 1
    assert (total[20:50] == 3).all()


def test_a_weight_that_rounds_to_nothing_reads_one_record() -> None:
    assert GlobalOrder([10, 3], [1.0, 0.01], seed=0).length == 11


def test_data_sets_are_mixed_evenly() -> None:
    order = GlobalOrder([1000, 3000], [3.0, 1.0], seed=1)
    first = epoch_of(order, 2) < 1000
    assert np.abs(first.reshape(60, 100).mean(1) - 0.5).max() < 0.2  # four standard deviations


# ---------------------------------------------------------------------------------------------------- blocks


def test_weighted_blocks_never_run_out() -> None:
    """An epoch of length positions is there whatever blocks it gets, the last and shorter ones included."""
    for seed in range(20):
        order = BlockOrder([10, 33], [0.4, 1.7], seed, block=4, group=2)
        records = [epoch_of(order, epoch) for epoch in range(12)]
        assert all(order.blocks(epoch)[1][-1] >= order.length > 0 for epoch in range(12))
        counts = np.bincount(np.concatenate(records), minlength=43)
        assert counts.min() >= 2  # 12 epochs of 0.4, less what is left over
        assert len(records[0]) == order.length


def test_groups_hold_whole_blocks_and_mix_them() -> None:
    order = BlockOrder([1000], [1.0], seed=5, block=10, group=20)
    records = epoch_of(order, 0)
    for group in records.reshape(5, 200):
        blocks, counts = np.unique(group // 10, return_counts=True)
        assert len(blocks) == 20
        assert (counts == 10).all()
        assert (np.diff(group) == 1).mean() < 0.05  # mixed record by record: 1 in 200 by chance
    again = epoch_of(order, 1)[:200] // 10
    assert len(np.intersect1d(again, records[:200] // 10)) < 12  # 4 of 20 by chance: other company each epoch


def test_reads_a_seek_and_company_of_identities() -> None:
    """What blocks buy and what they cost, as the docstring says: runs of B records, n / (G B) times the pairs."""
    n, images, batch = 40_000, 20, 250
    labels = np.arange(n) // images  # sorted, as files are
    runs, pairs = {}, {}
    for name, order in (
        ("global", GlobalOrder([n], [1.0], seed=1)),
        ("blocks", BlockOrder([n], [1.0], seed=1, block=100, group=40)),
    ):
        records = epoch_of(order, 0)
        windows = [np.unique(window) for window in records.reshape(-1, 4000)]  # a group: what the page cache holds
        runs[name] = n / sum(1 + np.count_nonzero(np.diff(window) > 1) for window in windows)
        counts = [np.bincount(labels[b]) for b in records.reshape(-1, batch)]
        pairs[name] = np.mean([(c * (c - 1) // 2).sum() for c in counts])
    assert runs["global"] < 1.2
    assert 100 <= runs["blocks"] < 120  # some blocks of a group are neighbours
    assert pairs["global"] == pytest.approx(batch * (batch - 1) / 2 * (images - 1) / (n - 1), rel=0.15)
    assert pairs["blocks"] / pairs["global"] == pytest.approx(n / 4000, rel=0.15)


def test_every_block_is_announced_once_and_before_it_is_read() -> None:
    source = Labelled(np.zeros(203, int), 1)
    order = BlockOrder([203], [1.0], seed=1, block=5, group=4)
    plan = make_plan(DataConfig(path="x"), source, order, BatchCut(12, 1, 1, 2), 1)
    assert isinstance(plan, ReadingAhead)
    seen: set[int] = set()
    for step in range(plan.micro_steps):
        indices = plan.indices(0, step)
        plan.indices(0, step)  # a loader may ask twice
        announced = [record for start, stop in source.announced for record in range(start, stop)]
        assert len(announced) == len(set(announced))
        assert set(indices.tolist()) <= set(announced)
        seen |= set(indices.tolist())
        assert len(announced) <= step * 12 + 12 + 3 * 20  # no further ahead than the next group
    assert len(source.announced) == 41
    assert {stop - start for start, stop in source.announced} == {5, 3}
    source.announced.clear()
    plan.indices(1, 10)  # resumed in the middle: from its group on
    assert len(source.announced) < 15


# ------------------------------------------------------------------------------------------------- balanced


@pytest.mark.parametrize("labels", [ASCENDING, MIXED])
def test_balanced_gives_identities_and_their_images_the_same_turns(labels: np.ndarray) -> None:
    order = BalancedOrder(Labelled(labels, 10), 3, BATCH)
    assert order.length == 60
    records = np.concatenate([epoch_of(order, epoch) for epoch in range(30)])
    for stop in (9, 60, 333, 1800):  # at any moment: class 0 has no image
        turns = np.bincount(labels[records[:stop]], minlength=10)
        assert turns[0] == 0
        assert turns[1:].max() - turns[1:].min() <= 1
        images = np.bincount(records[:stop], minlength=60)
        for label in range(1, 10):
            of_class = images[labels == label]
            assert of_class.max() - of_class.min() <= 1


def test_balanced_orders_differ_from_pass_to_pass() -> None:
    order = BalancedOrder(Labelled(np.arange(3000) // 3, 1000), 1, 100)
    labels = [order.records(0, np.arange(1000) + 1000 * number) // 3 for number in range(3)]
    assert (labels[0] == labels[1]).mean() < 0.01
    images = [order.records(0, np.arange(1000) + 1000 * number) % 3 for number in range(3)]
    by_class = [image[np.argsort(label)] for image, label in zip(images, labels, strict=True)]
    assert abs((by_class[0] == 0).mean() - 1 / 3) < 0.06
    assert (np.sort(np.stack(by_class), axis=0) == np.array([[0], [1], [2]])).all()


# ------------------------------------------------------------------------------------------------------- pk


@pytest.mark.parametrize("labels", [ASCENDING, MIXED])
def test_pk_batches_hold_p_identities_of_k_images(labels: np.ndarray) -> None:
    order = PKOrder(Labelled(labels, 10), 3, BATCH, images_per_identity=3)
    assert order.length == 60
    for epoch in range(20):
        for batch in epoch_of(order, epoch).reshape(-1, 4, 3):
            identities = labels[batch]
            assert (identities == identities[:, :1]).all()
            assert len(np.unique(identities[:, 0])) == 4
            for images, label in zip(batch, identities[:, 0], strict=True):
                assert len(np.unique(images)) == min(3, COUNTS[label])  # as many different ones as there are


def test_pk_covers_identities_and_images_evenly() -> None:
    order = PKOrder(Labelled(MIXED, 10), 3, BATCH, images_per_identity=3)
    records = np.concatenate([epoch_of(order, epoch) for epoch in range(90)])  # 450 batches, 225 passes of two
    turns = np.bincount(MIXED[records], minlength=10)[1:] // 3
    assert turns.sum() == 450 * 4
    assert (turns <= 225).all()  # once a pass at most
    assert (np.abs(turns - 200) < 20).all()  # one of nine identities waits: four standard deviations are 19
    images = np.bincount(records, minlength=60)
    for label in (3, 5, 6, 9):  # with at least K images
        of_class = images[label == MIXED]
        assert of_class.min() > 0.5 * of_class.mean()
        assert of_class.max() < 1.5 * of_class.mean()


def test_pk_reads_all_images_before_one_comes_again() -> None:
    """Four identities, all in every batch: six images in windows of three."""
    order = PKOrder(Labelled(np.repeat(np.arange(4), 6), 4), 3, BATCH, images_per_identity=3)
    records = np.concatenate([epoch_of(order, epoch) for epoch in range(3)]).reshape(-1, 2, BATCH)
    for two in records:
        assert np.array_equal(np.sort(two.ravel()), np.arange(24))


def test_what_pk_cannot_do_is_said() -> None:
    with pytest.raises(ConfigError, match=r"images_per_identity must divide the global batch \(12\), got 5"):
        PKOrder(Labelled(MIXED, 10), 3, BATCH, 5)
    with pytest.raises(ConfigError, match=r"at least the global batch / number of identities \(24 / 9\), got 2"):
        PKOrder(Labelled(MIXED, 10), 3, 24, 2)


# --------------------------------------------------------------------------------------------------- half_pk


def test_half_pk_batches_are_half_of_each_kind() -> None:
    order = HalfPKOrder(Labelled(MIXED, 10), 3, BATCH, images_per_identity=3)
    assert order.length == 60
    whole, pk = GlobalOrder([60], [1.0], 3), PKOrder(Labelled(MIXED, 10), 3, BATCH // 2, 3)
    for two in range(2):  # epochs, by which the random half has read every record once
        records = np.concatenate([epoch_of(order, 2 * two), epoch_of(order, 2 * two + 1)])
        assert np.array_equal(records[::2], epoch_of(whole, two))
        assert np.array_equal(records[1::2], epoch_of(pk, two))
        identities = MIXED[records.reshape(-1, BATCH)[:, 1::2].reshape(-1, 2, 3)]
        assert (identities == identities[..., :1]).all()


def test_what_half_pk_cannot_do_is_said() -> None:
    with pytest.raises(ConfigError, match=r'data\.sampler must not be "half_pk" with an odd global batch, got 9'):
        HalfPKOrder(Labelled(MIXED, 10), 3, 9, 3)
    with pytest.raises(ConfigError, match=r"images_per_identity must divide half the global batch \(6\), got 4"):
        HalfPKOrder(Labelled(MIXED, 10), 3, BATCH, 4)


def test_data_without_two_images_of_an_identity_have_no_positives() -> None:
    alone, once = Labelled(np.arange(12), 12), Labelled([0, *range(11)], 11)
    for make in (lambda source: PKOrder(source, 3, 6, 2), lambda source: HalfPKOrder(source, 3, BATCH, 2)):
        with pytest.raises(ConfigError, match=r"data\.sampler: no identity of the data has two images"):
            check_positives(make(alone))
        check_positives(make(once))


def test_the_configuration_picks_the_order() -> None:
    source = Labelled(MIXED, 10, sizes=(20, 40))
    parts = (PartConfig(path="a", weight=2.0), PartConfig(path="b"))
    make = lambda **keys: make_order(DataConfig(path="x", **keys), source, BATCH, seed=3)  # type: ignore[arg-type]
    weighted = make(parts=parts)
    assert isinstance(weighted, GlobalOrder)
    assert weighted.length == 80
    blocks = make(parts=parts, shuffle="blocks", block_records=8, group_blocks=2)
    assert isinstance(blocks, BlockOrder)
    assert (blocks.block, blocks.group, blocks.length) == (8, 2, 80)
    assert isinstance(make(sampler="balanced", parts=(parts[1], parts[1])), BalancedOrder)
    pk = make(sampler="pk", images_per_identity=2)
    assert isinstance(pk, PKOrder)
    assert (pk.p, pk.k) == (6, 2)
    half = make(sampler="half_pk", images_per_identity=2)
    assert isinstance(half, HalfPKOrder)
    assert (half.pk.p, half.pk.k) == (3, 2)
