"""A profile of a few steps: what torch's profiler saw, and what memory was allocated where.

    <run>/profile/<phase>_rank<n>.trace.json.gz    opens in ui.perfetto.dev or chrome://tracing
    <run>/profile/<phase>_rank<n>.memory.pickle    on CUDA: torch's memory snapshot (torch.cuda._memory_viz)

`run.profile_steps = [first, last]` names optimiser steps, both included, of every phase that reaches them;
`run.profile_ranks` the ranks. On the CPU, where torch takes no snapshots, the trace has every allocation instead. A
phase that ends before `last` leaves what there is. Profiled steps are slower, and so are their times in metrics.jsonl.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from partialkd.config import RunConfig
from partialkd.errors import StorageError
from partialkd.storage.atomic_files import hidden_name, naming, publish
from partialkd.world.world import World

PROFILE = "profile"
_log = logging.getLogger(__name__)
_EVENTS = 200_000  # allocations that a snapshot goes back


class Profiler:
    """Profiles one phase on this rank, if it is asked to."""

    def __init__(self, folder: Path, phase: str, run: RunConfig, world: World) -> None:
        """folder: of the run."""
        asked = run.profile_steps if world.rank in run.profile_ranks else None
        self._first, self._last = asked or (0, 0)
        self._path, self._name = folder / PROFILE, f"{phase}_rank{world.rank}"
        self._cuda = world.device.type == "cuda"
        self._going: Any = None

    def before(self, step: int) -> None:
        """Begin, if `step`, counted from 1, is the first to profile; a run that goes on between them begins late."""
        if self._going is None and self._first <= step <= self._last:
            self._going = self._begin()

    def after(self, step: int) -> None:
        """End, if `step` was the last to profile."""
        if self._going is not None and step >= self._last:
            self.close()

    def close(self) -> None:
        """Write what was profiled, if anything; a disk that fails is told of, and the run goes on."""
        going, self._going = self._going, None
        if going is None:
            return
        self._first, self._last = 0, 0
        going.stop()
        try:
            with naming(self._path):
                self._path.mkdir(parents=True, exist_ok=True)
            self._write("trace.json.gz", lambda path: going.export_chrome_trace(str(path)))
            if self._cuda:
                self._write("memory.pickle", lambda path: torch.cuda.memory._dump_snapshot(str(path)))
        except (StorageError, OSError) as error:
            _log.warning(f"the profile cannot be written: {error}")
        finally:
            if self._cuda:
                torch.cuda.memory._record_memory_history(enabled=None)

    def _begin(self) -> Any:
        from torch.profiler import ProfilerActivity, profile

        if self._cuda:
            torch.cuda.memory._record_memory_history(max_entries=_EVENTS)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        going = profile(activities=activities, profile_memory=True, record_shapes=True)
        going.start()
        return going

    def _write(self, ending: str, write: Any) -> None:
        path = self._path / f"{self._name}.{ending}"
        hidden = hidden_name(path)
        hidden = hidden.with_name(hidden.name.removesuffix(".partial") + f".{ending}")  # the ending says how to write
        try:
            write(hidden)
            publish(hidden, path)
        finally:
            with suppress(OSError):
                hidden.unlink()
        _log.info(f"{path}: the profile of this rank")
