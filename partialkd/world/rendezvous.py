"""Rendezvous: ranks find each other when a world starts, and find out who is missing when a collective fails.

All of it goes through the store of the rendezvous, which is no collective. torchrun keeps that store in the launcher
of the first node, so it survives the death of any rank; without torchrun it lives in rank 0's process.

torchrun (2.13) gives restarted ranks the same store, with everything that the ranks before them left in it, gloo's
addresses included, and the number of restarts may differ between nodes. So every start has a name of its own: rank 0
draws it, each rank answers with a number drawn at its start, and goes on when it sees that number in rank 0's list.

Errors: `RankLost` naming the ranks that did not come within the timeout.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from partialkd.errors import RankLost
from partialkd.storage.process import Place

T = TypeVar("T")
_POLL_S = 0.05
_TICK_S = 1.0
_SUSPICION = {"gone": 0, "stopped": 0, "unknown": 1, "running": 2}


class KeyValues(Protocol):
    """What is needed of torch.distributed.Store."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def add(self, key: str, amount: int, /) -> int: ...
    def check(self, keys: list[str], /) -> bool: ...


@dataclass(frozen=True)
class Membership:
    """Who takes part in this start. `places`: by rank."""

    store: KeyValues
    rank: int
    name: str  # of this start: a prefix for keys that the next start must not see
    places: list[Place]
    timeout_s: float

    @classmethod
    def join(cls, store: KeyValues, rank: int, size: int, timeout_s: float) -> Membership:
        """Join the other ranks (collective): returns on every rank when all are there."""
        mine, deadline = Place.here(), time.monotonic() + timeout_s
        name = _lead(store, size, mine, deadline) if rank == 0 else _follow(store, rank, mine, deadline)
        places = [Place(**place) for place in json.loads(store.get(f"{name}/all"))]
        return cls(store, rank, name, places, timeout_s)

    @contextmanager
    def heartbeat(self, what: str) -> Iterator[None]:
        """Send heartbeats from rank 0 inside the block, in which the others wait in `wait_for(what)`."""
        done = threading.Event()

        def tick() -> None:
            while not done.wait(_TICK_S):
                self.store.add(f"{self.name}/{what}/ticks", 1)

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.store.set(f"{self.name}/{what}/done", "")

    def wait_for(self, what: str) -> None:
        """Wait until rank 0 has done it. RankLost if rank 0 is gone, or sends no heartbeat for the timeout."""
        ticks, heard, pause_s = -1, time.monotonic(), 0.001
        while not self.store.check([f"{self.name}/{what}/done"]):
            now = self.store.add(f"{self.name}/{what}/ticks", 0)
            if now != ticks:
                ticks, heard = now, time.monotonic()
            elif self.places[0].state() == "gone" or time.monotonic() - heard > self.timeout_s:
                raise RankLost(f"rank {self.rank} of {len(self.places)}: rank 0 went away from work of its own")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.1)

    def report_failure(self) -> bool:
        """Say that this rank failed -> whether it is the first one to."""
        self.store.set(f"{self.name}/failed/{self.rank}", "")
        return self.store.add(f"{self.name}/failures", 1) == 1

    def without_report(self, grace_s: float) -> list[int]:
        """List the ranks that report no failure within the grace; sooner if all are seen to be gone or stopped."""
        deadline = time.monotonic() + grace_s
        while True:
            ranks = [rank for rank in range(len(self.places)) if not self.store.check([f"{self.name}/failed/{rank}"])]
            lost = all(self.places[rank].state() in ("gone", "stopped") for rank in ranks)
            if lost or time.monotonic() > deadline:
                return ranks
            time.sleep(_POLL_S)

    def describe(self, ranks: list[int]) -> str:
        """Name the most suspicious of ranks that did not report: one that runs may be waiting for one that is gone."""
        state = {rank: self._state(rank) for rank in ranks}
        worst = min((_SUSPICION[one] for one in state.values()), default=0)
        named = [(rank, self.places[rank]) for rank in ranks if _SUSPICION[state[rank]] == worst]
        return ", ".join(f"rank {rank} (process {place.pid} on {place.host}, {state[rank]})" for rank, place in named)

    def _state(self, rank: int) -> str:
        state = self.places[rank].state()  # looked at before the key, which is set before the process is killed
        return "stopped" if self.store.check([f"{self.name}/stopped/{rank}"]) else state

    def kill_stopped(self) -> None:
        """Kill the stopped ranks of this machine: they can neither save nor hear a signal, and would be waited for."""
        for rank, place in enumerate(self.places):
            if rank != self.rank and place.state() == "stopped":
                # For whoever describes it after this. `add`, as it returns when the store has it: `set` does not wait.
                self.store.add(f"{self.name}/stopped/{rank}", 1)
                with suppress(ProcessLookupError):  # another rank was faster
                    os.kill(place.pid, signal.SIGKILL)


def with_timeout(seconds: float, action: Callable[[], T]) -> T | None:
    """Return what `action` returns, or None if the store fails or it takes longer: it then stays behind in its thread.

    Any other error of it would be a fault of the program: its traceback is shown (threading.excepthook), and the answer
    is None too, so that the error that is being explained is still told.
    """
    results: list[T] = []

    def act() -> None:
        try:
            results.append(action())
        except RuntimeError:  # of the store: its server is gone
            return

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def _lead(store: KeyValues, size: int, mine: Place, deadline: float) -> str:
    name = mine.token
    keys = [f"{name}/here/{rank}" for rank in range(1, size)]
    store.set("start", name)
    while keys and not store.check(keys):
        if time.monotonic() > deadline:
            absent = [rank for rank, key in enumerate(keys, start=1) if not store.check([key])]
            raise RankLost(f"ranks {absent} of {size} did not come in time (dist.timeout_s)")
        time.sleep(_POLL_S)
    places = [asdict(mine), *(json.loads(store.get(key)) for key in keys)]
    store.set(f"{name}/all", json.dumps(places))
    return name


def _follow(store: KeyValues, rank: int, mine: Place, deadline: float) -> str:
    while time.monotonic() < deadline:
        if store.check(["start"]):
            name = store.get("start").decode()  # it may be that of a start before this one
            store.set(f"{name}/here/{rank}", json.dumps(asdict(mine)))
            if store.check([f"{name}/all"]) and _token(store, name, rank) == mine.token:
                return name
        time.sleep(_POLL_S)
    raise RankLost(f"rank {rank}: rank 0, or a rank that it waits for, did not come in time (dist.timeout_s)")


def _token(store: KeyValues, name: str, rank: int) -> Any:
    places = json.loads(store.get(f"{name}/all"))
    return places[rank]["token"] if rank < len(places) else None
