"""What must not move, moved on purpose: students apart, a teacher that changes, centres that are not finite."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from helpers.health_cases import (
    BAD,
    PARAMETER,
    bad_centre,
    config_of,
    flipped_parameter,
    make,
    other_teacher,
    stopped_by,
)
from helpers.ranks import run
from partialkd.centres.store import CentreStore
from partialkd.config import Config
from partialkd.errors import PartialKDError
from partialkd.training.silent_changes import CentreSweep, bit_sums
from partialkd.world.world import World

pytestmark = pytest.mark.distributed


@pytest.mark.slow
@pytest.mark.parametrize(("size", "who"), [(3, "rank 2 from the other 2"), (2, "2 ranks, no 2 of them alike")])
def test_students_that_drift_apart_are_named(size: int, who: str, tmp_path: Path) -> None:
    """One bit of one parameter. BatchNorm's buffers differ all the while."""
    problem = stopped_by(config_of(tmp_path, health={"check_every": 1}), size, flipped_parameter)
    found = f"student: at step {BAD + 1}: the student's parameters differ between ranks: {who}, first in "
    assert problem.startswith(found)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_students_that_drift_apart_at_stages_1_and_2(stage: int, tmp_path: Path) -> None:
    problem = run(drifted, 2, config_of(tmp_path, zero_stage=stage))[0]
    assert f"2 ranks, no 2 of them alike, first in {PARAMETER}; last good checkpoint: none yet" in problem


def drifted(world: World, config: Config) -> str:
    one, stop = make(world, config)
    one.health.check()
    if world.rank:
        flipped_parameter(one, None)
    with pytest.raises(PartialKDError) as error:
        one.health.check()
    one.close()
    stop.forget()
    return str(error.value)


@pytest.mark.slow
def test_a_teacher_that_changes_is_found(tmp_path: Path) -> None:
    problem = stopped_by(config_of(tmp_path, "adadistill", {"check_every": 1}), 2, other_teacher)
    found = rf"student: at step {BAD + 1}: rank 1: the teacher changed while the student was trained: \S+running_mean; "
    assert re.match(found, problem)


def test_a_shard_that_is_not_finite_is_found_before_it_can_do_harm(tmp_path: Path) -> None:
    first, second = run(spoiled, 2, config_of(tmp_path))
    where = "student: at step 0: rank 1: NaN or infinity in the centres of classes 7; last good checkpoint: none yet"
    assert first == second == [where] * 2


def spoiled(world: World, config: Config) -> list[str]:
    """Found by the look at slices, and by that before saving."""
    one, stop = make(world, config)
    one.health.check(everything=True)
    if world.rank:
        bad_centre(one, None)

    def go_on() -> None:
        for _ in range(config.health.check_every):
            one.student.norm = torch.zeros(())
            one.health.stepped()  # at step 0 each of them looks

    found = []
    for looking in (go_on, one.save):
        with pytest.raises(PartialKDError) as error:
            looking()
        found.append(str(error.value))
    one.close()
    stop.forget()
    return found


def test_every_row_of_a_shard_is_looked_at_in_check_every_steps() -> None:
    for row in range(10):
        store = CentreStore.random(range(20, 30), 40, 4, torch.float32, torch.device("cpu"), 0)
        store.add_moment("momentum")
        sweep = CentreSweep(store, 4)
        for tensor in (store.unit, store.length[:, None], store.moments["momentum"]):
            before = tensor[row].clone()
            assert sweep.problem(everything=False) is None
            tensor[row, -1] = float("nan")
            for _ in range(4):
                sweep.step(store)
            assert sweep.problem(everything=False) == f"NaN or infinity in the centres of classes {20 + row}"
            assert sweep.problem(everything=True) is not None
            tensor[row] = before


def test_one_bit_changes_the_checksum() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool):
        x = torch.ones(3, 5).to(dtype)
        before = bit_sums([x])
        x[1, 2] = 0
        assert bit_sums([x]) != before
