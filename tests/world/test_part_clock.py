"""A clock that is always in one part: the parts sum to the whole, and nothing is counted while it is off."""

from __future__ import annotations

import pytest
import torch

from partialkd.world import part_clock as module
from partialkd.world.part_clock import PartClock
from partialkd.world.world import COLLECTIVES, World

CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: time[0])
    return time


def test_parts_sum_to_the_whole(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_MARKS", 5)  # summed up on the way
    clock = PartClock()
    clock.start(CPU, "other")
    for _ in range(10):
        now[0] += 1
        with clock.within("data"):
            now[0] += 2
        with clock.within("student"):
            now[0] += 4
            with clock.within("collectives"):
                now[0] += 8
            now[0] += 16
    now[0] += 32
    assert clock.read() == {"other": 42, "data": 20, "student": 200, "collectives": 80}
    now[0] += 5
    assert clock.read() == {"other": 5}


def _fail(clock: PartClock, now: list[float]) -> None:
    with clock.within("data"):
        now[0] += 3
        raise KeyError


def test_an_error_ends_its_part(now: list[float]) -> None:
    clock = PartClock()
    clock.start(CPU, "other")
    with pytest.raises(KeyError):
        _fail(clock, now)
    now[0] += 1
    assert clock.read() == {"data": 3, "other": 1}


def test_off_it_counts_nothing(now: list[float]) -> None:
    clock = PartClock()
    with clock.within("data"):
        now[0] += 1
    assert clock.read() == {}
    clock.start(CPU, "other")
    now[0] += 1
    clock.stop()
    assert clock.read() == {}


def test_every_world_has_its_own(now: list[float]) -> None:
    one, other = World(), World()
    one.clock.start(CPU, "other")
    one.sum(torch.ones(2))  # a single rank waits for nobody
    now[0] += 1
    assert one.clock.read() == {"other": 1}
    assert other.clock.read() == {}
    assert COLLECTIVES == "collectives"
