"""Signals are heard in every part of a job, and ranks speak of them no more often than needed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.jobs import job, tree
from helpers.ranks import run
from partialkd.errors import Preempted
from partialkd.run import begin, first_centres, scores
from partialkd.world import stop_signals as stopping
from partialkd.world.stop_signals import SIGNALS, StopSignals
from partialkd.world.world import World

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def _watched(world: World, slow_s: float) -> list[int]:
    """A loop that is slow at first -> turns at which the ranks spoke; the last rank is asked after 30 turns."""
    spoken: list[int] = []
    original = World.max

    def counting(self: World, x: torch.Tensor) -> torch.Tensor:
        spoken.append(turn)
        return original(self, x)

    World.max = counting  # type: ignore[method-assign]
    stop = StopSignals()
    try:
        watch = stop.watch(world)
        for turn in range(1000):
            if turn == 30 and world.rank == world.size - 1:
                os.kill(os.getpid(), signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGTERM)
            if watch.asked():
                return spoken
            time.sleep(slow_s)
    finally:
        World.max = original  # type: ignore[method-assign]
        forget(stop)
    raise AssertionError("not heard in 1000 turns")


def forget(stop: StopSignals) -> None:
    """As it was: the pool's processes live on."""
    stop.forget()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def test_ranks_speak_rarely_in_a_fast_loop_and_every_turn_in_a_slow_one() -> None:
    first, second = run(_watched, 2, 0.001)
    assert first == second
    assert len(first) < 25  # doubling at first, then about once a second
    stopping_heed = run(_slow, 2)
    assert stopping_heed[0] == stopping_heed[1] == list(range(31))


def _slow(world: World) -> list[int]:
    before, stopping.HEED_S = stopping.HEED_S, 0.0  # every turn is slower than that
    try:
        return _watched(world, 0.0)
    finally:
        stopping.HEED_S = before


def _stopped_in(world: World, settings: dict[str, Any], name: str, after: int) -> str:
    """A signal to the last rank at the call of a function of run/ that takes a network, or of its `prepare`."""
    place = next(module for module in (begin, first_centres, scores) if hasattr(module, name))
    original = getattr(place, name)

    def hit() -> None:
        if world.rank == (0 if name == "prepare" else world.size - 1):
            os.kill(os.getpid(), signal.SIGUSR1)

    def wrapped(*arguments: Any) -> Any:
        if name == "prepare":
            hit()
            time.sleep(60)
        arguments = tuple(_hit_in_call(a, hit, after) if callable(a) else a for a in arguments)
        return original(*arguments)

    setattr(place, name, wrapped)
    try:
        with pytest.raises(Preempted) as stop:
            job(world, settings, "auto")
    finally:
        setattr(place, name, original)
        for number in SIGNALS:
            assert signal.getsignal(number) == signal.SIG_IGN  # the process is about to end
            signal.signal(number, signal.SIG_DFL)
    return str(stop.value)


def _hit_in_call(act: Callable[..., Any], hit: Callable[[], None], after: int) -> Callable[..., Any]:
    calls = 0

    def acting(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after:
            hit()
        return act(*arguments)

    return acting


def test_signals_are_heard_in_every_part_of_a_job(tmp_path: Path) -> None:
    """Making the data, the teacher's pass over the records, an evaluation; then the same job goes on to its end."""
    settings = tree(tmp_path)
    settings["evaluate"]["batch"] = 8
    del settings["alone"]
    assert all("stopped while making the data" in said for said in run(_stopped_in, 2, settings, "prepare", 1))
    assert not list(tmp_path.glob("data*"))
    said = run(_stopped_in, 2, settings, "class_means", 2)
    assert said == ["stopped while averaging the teacher's embeddings"] * 2
    assert not (tmp_path / "runs" / "trial" / "teacher_centres" / "manifest.json").exists()
    said = run(_stopped_in, 2, settings, "pairs_of_sets", 2)
    assert all("stopped while evaluating the student" in one for one in said)
    assert (tmp_path / "runs" / "trial" / "student" / "model.safetensors").exists()
    run(job, 2, settings, "auto")
    assert (tmp_path / "runs" / "trial" / "result.json").exists()
