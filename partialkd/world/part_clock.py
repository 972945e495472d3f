"""Where the time of a rank goes: a clock that is always in one part, so that the parts sum to the whole.

`now(part)` ends the part before; `within(part)` is a part inside another, which goes on afterwards. On CUDA the clock
is the stream's own: a mark is an event that is read much later, so that nobody waits for the device; a part is then
what the stream did and waited between two marks. Off until `start`: a mark then costs an attribute's look-up.
Unit: seconds.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MOST_MARKS = 8192  # kept before they are summed up


class PartClock:
    """Seconds of each part since they were last read."""

    def __init__(self) -> None:
        self._device: torch.device | None = None
        self._part = ""
        self._marks: list[tuple[str, Any]] = []  # the part that ended, and when; the first is the start
        self._sums: dict[str, float] = {}

    def start(self, device: torch.device, part: str) -> None:
        """Count from now on, beginning with `part`; what was counted before is forgotten."""
        self._device, self._part, self._sums = device, part, {}
        self._marks = [("", self._time())]

    def stop(self) -> None:
        """Count no more."""
        self._device, self._marks, self._sums = None, [], {}

    def now(self, part: str) -> str:
        """Count to `part` from here on -> what was counted to before."""
        before, self._part = self._part, part
        if self._device is not None:
            self._marks.append((before, self._time()))
            if len(self._marks) > MOST_MARKS:
                self._sum_up()
        return before

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Count what is done inside the `with` block to `part`."""
        before = self.now(part)
        try:
            yield
        finally:
            self.now(before)

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last call; waits for the device."""
        if self._device is None:
            return {}
        self.now(self._part)
        self._sum_up()
        sums, self._sums = self._sums, {}
        return sums

    def _time(self) -> Any:
        assert self._device is not None
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _sum_up(self) -> None:
        if self._device is not None and self._device.type == "cuda":
            self._marks[-1][1].synchronize()
        for (_, begun), (part, ended) in zip(self._marks, self._marks[1:], strict=False):
            self._sums[part] = self._sums.get(part, 0.0) + _between(begun, ended)
        self._marks = self._marks[-1:]


def _between(begun: Any, ended: Any) -> float:
    return ended - begun if isinstance(begun, float) else begun.elapsed_time(ended) / 1000


def forget_peak(device: torch.device) -> None:
    """Let the most bytes so far be those of now; not possible of a process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float:
    """Return the most bytes so far: of CUDA's allocator, or of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
