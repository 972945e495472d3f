"""One thread pool: results in order, a bounded distance ahead, errors in their place, threads that end."""

from __future__ import annotations

import threading
import time

import pytest

from partialkd.data.ordered_threads import in_order


def pool() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("partialkd-data")]


def test_results_come_in_the_order_of_their_items() -> None:
    slow_first = lambda x: time.sleep(0.02 if x == 0 else 0) or x * x
    assert list(in_order(slow_first, range(200), 3)) == [(x, x * x) for x in range(200)]
    assert list(in_order(slow_first, [], 3)) == []
    assert not pool()


def test_an_error_comes_in_the_place_of_its_item() -> None:
    results = in_order(lambda x: 1 // (7 - x), range(100), 3)
    assert [next(results)[0] for _ in range(7)] == list(range(7))
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not pool()


@pytest.mark.parametrize(("workers", "ahead", "distance"), [(3, None, 3), (2, 9, 9), (2, 0, 0)])
def test_no_more_is_asked_for_than_the_distance(workers: int, ahead: int | None, distance: int) -> None:
    asked: list[int] = []
    results = in_order(lambda x: x, (asked.append(x) or x for x in range(100)), workers, ahead)
    for taken in range(1, 50):
        next(results)
        assert len(asked) == taken + distance
    results.close()
    assert not pool()
