"""Requests to stop: SIGTERM, SIGINT, SIGHUP, SIGQUIT or SIGUSR1, on any rank, any number of times.

SIGHUP comes when a terminal is closed. What the process was told to ignore at its start stays ignored, if it is a
signal that comes from terminals: nohup ignores SIGHUP, a shell SIGINT and SIGQUIT for what it runs in the background.

A handler only sets a flag; signals reach the ranks at different moments, so they agree on it where all of them are at
the same place. How they ask each other depends on what they are doing:

- `watch`: in a loop that all ranks go through in step (training, the teacher's pass over the records). A collective,
  about once every `HEED_S` seconds: after each one the ranks set, from the speed they measured, how many turns of the
  loop later the next is. At an even pace a signal is heard within HEED_S or one turn, whichever is longer; in a loop
  that becomes f times slower, once up to f times later.
- `listen`: where each rank works at its own pace (evaluation). Through the store, looked at once every HEED_S.
- `cut_short`: where rank 0 works and the others wait (making the data). The handler itself raises `Preempted` there; a
  signal to a waiting rank alone is heard when the work is done. torchrun and Slurm send signals to all ranks.
"""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import torch

from partialkd.errors import Preempted
from partialkd.world.world import World

FROM_TERMINALS = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, *FROM_TERMINALS)
HEED_S = 1.0

T = TypeVar("T")
R = TypeVar("R")


class StopSignals:
    """The flag, from the moment it is made until the end of its `with` block; one a process."""

    def __init__(self) -> None:
        self.asked = False
        self._cutting: str | None = None  # what the handler may break off
        heard = [number for number in SIGNALS if not _ignored(number)]
        self._before = {number: signal.signal(number, self._ask) for number in heard}

    def __enter__(self) -> StopSignals:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget(ending=isinstance(error, Preempted))

    def _ask(self, *_: object) -> None:
        self.asked = True
        doing, self._cutting = self._cutting, None  # once: the second signal must not break off the clearing up
        if doing:
            raise Preempted(f"stopped while {doing}")

    def agreed(self, world: World) -> bool:
        """Agree on whether any rank was asked (collective): the same answer on every rank."""
        return bool(world.max(torch.tensor(float(self.asked), device=world.device)))

    def watch(self, world: World) -> Watch:
        return Watch(self, world)

    def listen(self, world: World) -> Listener:
        """Collective."""
        return Listener(self, world)

    def heeding(self, world: World, batches: Iterable[T], doing: str) -> Iterator[T]:
        """Yield the batches, as many on every rank (collective); Preempted on all ranks if any was asked."""
        watch = self.watch(world)
        for batch in batches:
            if watch.asked():
                raise Preempted(f"stopped while {doing}")
            yield batch

    def cut_short(self, doing: str, action: Callable[[], T]) -> T:
        """Run `action` on this rank -> its result; Preempted as soon as this process is asked, also where it waits."""
        if self.asked:
            raise Preempted(f"stopped before {doing}")
        self._cutting = doing
        try:
            return action()
        except Exception as error:
            if self.asked and not isinstance(error, Preempted):  # its processes heard the signal first
                raise Preempted(f"stopped while {doing}") from error
            raise
        finally:
            self._cutting = None

    def forget(self, ending: bool = False) -> None:
        """Put the earlier handlers back, unless the process is about to end, which no further signal may hurry.

        That is so where it was asked, or is `ending` because another rank was: its own signal may be on its way.
        """
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.asked or ending else handler)


def _ignored(number: signal.Signals) -> bool:
    return number in FROM_TERMINALS and signal.getsignal(number) is signal.SIG_IGN


class Watch:
    """Whether any rank was asked, for a loop whose turns all ranks take together."""

    def __init__(self, signals: StopSignals, world: World) -> None:
        self._signals, self._world = signals, world
        self._turns, self._next = 0, 1
        self._since = time.monotonic()

    def asked(self) -> bool:
        """Say whether any rank was asked (collective, once per turn): the same answer on every rank."""
        self._turns += 1
        if self._turns < self._next:
            return False
        turn_s = (time.monotonic() - self._since) / self._turns
        wish = min(2 * self._next, max(1, int(HEED_S / max(turn_s, 1e-9))))
        mine = torch.tensor([float(self._signals.asked), -float(wish)], device=self._world.device)
        asked, most_careful = self._world.max(mine).tolist()
        self._turns, self._next, self._since = 0, int(-most_careful), time.monotonic()
        return bool(asked)


class Listener:
    """Whether any rank was asked, for work that each rank does at its own pace."""

    def __init__(self, signals: StopSignals, world: World) -> None:
        self._signals, self._store = signals, world.store
        self._key = f"stop/{world.broadcast_object(secrets.token_hex(8))}"
        self._told = False
        self._looked = time.monotonic()

    def guarding(self, act: Callable[[T], R], doing: str) -> Callable[[T], R]:
        """`act`, which raises Preempted instead once any rank was asked."""

        def guarded(x: T) -> R:
            if self.asked():
                raise Preempted(f"stopped while {doing}")
            return act(x)

        return guarded

    def asked(self) -> bool:
        """Say whether any rank was asked; not collective, so call it as often as you like."""
        if self._signals.asked and not self._told:
            self._told = True
            if self._store is not None:
                self._store.set(self._key, "")
        elif not self._told and self._store is not None and time.monotonic() - self._looked > HEED_S:
            self._looked = time.monotonic()
            self._told = self._store.check([self._key])
        return self._told
