"""The most memory that a call holds, as torch's allocator counts it."""

from __future__ import annotations

from collections.abc import Callable

import torch


def peak_of(run: Callable[[], object]) -> int:
    """Most bytes that torch held at once on the CPU while this ran, beside those of before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
