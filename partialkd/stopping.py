"""Being asked to stop: SIGTERM, SIGINT or SIGUSR1, on any rank, any number of times.

A handler only sets a flag; the ranks agree on it where they are all at the same place, since a signal reaches
them at different moments.
"""

from __future__ import annotations

import signal

import torch

from partialkd.dist import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignals:
    """The flag, from the moment it is made; one a process."""

    def __init__(self) -> None:
        self._asked = False
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def _ask(self, *_: object) -> None:
        self._asked = True

    def agreed(self, world: World) -> bool:
        """Collective. True on every rank if any was asked."""
        return bool(world.max(torch.tensor(float(self._asked), device=world.device)))

    def forget(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
