"""Plans: every record at most once an epoch, the same at every world size and accumulation, exact from any step."""

from __future__ import annotations

import numpy as np
import pytest

from partialkd.data.order.plan import BatchCut, SequentialPlan, TrainingPlan
from partialkd.errors import ConfigError

RECORDS, GLOBAL_BATCH = 103, 24  # 4 steps, 7 records left out


def _plan(rank: int = 0, world_size: int = 1, accumulation: int = 1, seed: int = 3, grey: float = 0.0) -> TrainingPlan:
    return TrainingPlan(RECORDS, BatchCut(GLOBAL_BATCH, accumulation, rank, world_size), seed, flip=True, grey=grey)


def _global_steps(world_size: int, accumulation: int, epoch: int = 0) -> list[list[int]]:
    """Records of each optimiser step in the order (micro-step, rank)."""
    plans = [_plan(rank, world_size, accumulation) for rank in range(world_size)]
    assert {plan.micro_steps for plan in plans} == {4 * accumulation}
    steps = range(4 * accumulation)
    records = np.concatenate([plan.indices(epoch, step) for step in steps for plan in plans])
    return records.reshape(4, GLOBAL_BATCH).tolist()


def test_an_epoch_reads_no_record_twice_and_leaves_out_the_stated_remainder() -> None:
    plan = _plan()
    for epoch in range(3):
        read = np.concatenate([plan.indices(epoch, step) for step in range(plan.micro_steps)])
        assert len(np.unique(read)) == len(read) == RECORDS - plan.dropped == 96
        assert read.min() >= 0
        assert read.max() < RECORDS
        assert read.dtype == np.int64


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_the_global_batch_does_not_depend_on_ranks_or_micro_steps(world_size: int, accumulation: int) -> None:
    if GLOBAL_BATCH % (world_size * accumulation):
        with pytest.raises(ConfigError, match=rf"{accumulation} x {world_size} = {accumulation * world_size}.*got 24"):
            _plan(0, world_size, accumulation)
        return
    assert _global_steps(world_size, accumulation) == _global_steps(1, 1)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first, again = _plan(), _plan()
    other = _plan(seed=4)
    assert (first.indices(0, 0) != first.indices(1, 0)).any()
    assert (first.indices(0, 0) != other.indices(0, 0)).any()
    again.indices(5, 3)  # asking for something else in between changes nothing
    np.testing.assert_array_equal(first.indices(2, 1), again.indices(2, 1))


def test_the_order_is_shuffled_over_the_whole_set() -> None:
    """Not within a buffer: the mean distance between position and record is a third of the set."""
    plan = TrainingPlan(30_000, BatchCut(100), seed=0, flip=False)
    order = np.concatenate([plan.indices(0, step) for step in range(plan.micro_steps)])
    assert abs(np.abs(order - np.arange(30_000)).mean() / 10_000 - 1) < 0.03


def test_flips_and_greys_belong_to_the_record() -> None:
    plan = TrainingPlan(200_000, BatchCut(8), seed=1, flip=True, grey=0.2)
    other_rank = TrainingPlan(200_000, BatchCut(8, 2, 1, 2), seed=1, flip=True, grey=0.2)
    every = np.arange(200_000)
    flips, greys = plan.flips(0, every), plan.greys(0, every)
    assert flips.dtype == greys.dtype == bool
    assert abs(flips.mean() - 0.5) < 0.005
    assert abs(greys.mean() - 0.2) < 0.005
    assert abs((flips & greys).mean() - 0.1) < 0.005  # independent of each other
    assert abs((flips & plan.flips(1, every)).mean() - 0.25) < 0.005  # and of other epochs
    assert abs((flips[1:] & flips[:-1]).mean() - 0.25) < 0.005  # and of neighbours
    some = np.array([70_000, 3, 199_999])
    np.testing.assert_array_equal(other_rank.flips(0, some), flips[some])
    np.testing.assert_array_equal(other_rank.greys(0, some), greys[some])


def test_without_flip_and_grey_nothing_is_changed() -> None:
    plan = TrainingPlan(1000, BatchCut(8), seed=1, flip=False)
    assert not plan.flips(0, np.arange(1000)).any()
    assert not plan.greys(0, np.arange(1000)).any()
    everything = TrainingPlan(1000, BatchCut(8), seed=1, flip=False, grey=1.0)
    assert everything.greys(0, np.arange(1000)).all()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_sequential_reads_everything_once_in_order(world_size: int) -> None:
    plans = [SequentialPlan(25, 4, rank, world_size) for rank in range(world_size)]
    assert len({plan.micro_steps for plan in plans}) == 1
    parts = [plan.indices(0, step) for step in range(plans[0].micro_steps) for plan in plans]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(25))
    assert max(map(len, parts)) == 4
    assert not plans[0].flips(0, parts[0]).any()
    assert len(plans[0].greys(0, parts[0])) == 4


def test_sequential_ranks_without_a_record_get_empty_batches() -> None:
    last = SequentialPlan(5, 4, rank=2, world_size=3)
    assert last.micro_steps == 1
    assert last.indices(0, 0).shape == (0,)
    assert SequentialPlan(0, 4, 0, 1).micro_steps == 0


def test_errors_name_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"at most the number of records per epoch \(10\), got 16"):
        TrainingPlan(10, BatchCut(16), seed=0, flip=True)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        SequentialPlan(10, 0, 0, 1)
    with pytest.raises(ValueError, match=r"\[0, 4\), got 4"):
        _plan().indices(0, 4)
