"""The stopwatch of a part of the step."""

from __future__ import annotations

import time

import torch

from partialkd.training.stopwatch import MOST, Stopwatch


def test_it_gives_the_mean_and_begins_anew() -> None:
    watch = Stopwatch(torch.device("cpu"))
    assert watch.seconds() is None
    for _ in range(3):
        with watch:
            time.sleep(0.01)
    seconds = watch.seconds()
    assert seconds is not None
    assert seconds >= 0.01
    assert watch.seconds() is None


def test_it_keeps_only_the_newest() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2 * MOST):
        with watch:
            pass
    assert len(watch._measured) == MOST
