"""Measure how long a part of each step takes, without waiting for the device."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Any

import torch

MOST = 64  # newest measurements that count


class Stopwatch:
    """`with watch:` around a part of the step; `seconds` afterwards, where the device has been waited for anyway.

    On CUDA two events on the current stream: the time between them is the device's, other streams' work included.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._measured: deque[tuple[Any, Any]] = deque(maxlen=MOST)

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._measured.append((self._start, self._now()))

    def seconds(self) -> float | None:
        """Mean of the newest measurements since the last call; None without any. The device must be done with them."""
        if not self._measured:
            return None
        pairs, self._measured = list(self._measured), deque(maxlen=MOST)
        times = [start.elapsed_time(stop) / 1000 if self._cuda else stop - start for start, stop in pairs]
        return sum(times) / len(times)
