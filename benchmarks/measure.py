"""Measuring side by side: interleaved medians, products of rounded numbers, peak extra memory, and on what it was."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 %, 1 to 9 degrees of freedom


def interleaved_seconds(
    variants: dict[str, Callable[[], Any]],
    runs: int,
    device: torch.device,
    before: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Run every variant once to warm up, then all of them in turn `runs` times -> seconds of each run.

    `before`: called ahead of each of these, untimed; for ranks a barrier.
    """
    for step in variants.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(runs):
        for name, step in variants.items():
            before()
            wait_for(device)
            start = clock()
            step()
            wait_for(device)
            seconds[name].append(clock() - start)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def rounding(rounded: bool, device: torch.device) -> Iterator[None]:
    """Within, if `rounded`: products of bfloat16 operands, by autocast on CUDA, by oneDNN's setting on the CPU.

    The latter is of the whole process and holds for a backward pass as well; the former holds for what was multiplied
    within, forward and backward. Float32 tensors stay such on the CPU, as they do in the engine.
    """
    if device.type == "cuda":
        with torch.autocast("cuda", torch.bfloat16, enabled=rounded):
            yield
        return
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # set when the module is loaded
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16" if rounded else matmul.fp32_precision
    try:
        yield
    finally:
        matmul.fp32_precision = before


def peak_extra_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """Most bytes torch holds during `step` beyond those held before it. Library workspaces (MKL) are not seen."""
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo", encoding="utf-8") as lines:
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return 1024 * int(kilobytes)


def spread(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def difference(values: list[float], exact: list[float]) -> dict[str, Any]:
    """Mean of the paired differences, and half the width of its 95 % interval."""
    found = spread([a - b for a, b in zip(values, exact, strict=True)])
    count = len(values)
    half = STUDENT_T[count - 2] * found["std"] / count**0.5 if count > 1 else None
    return {"mean": found["mean"], "half_width": half}


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware, versions and commit, for the result file."""
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }
    if device.type == "cuda":
        facts["cuda"] = torch.version.cuda
    return facts


def _cpu_name() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else platform.processor()


def _commit() -> str:
    got = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return got.stdout.strip() or "unknown"
