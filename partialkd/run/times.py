"""How long a run has taken, over all of its starts, by phase: `times.json` in its folder.

Written by rank 0 at every checkpoint, at the end of every phase and at the end of a start, also one that fails or is
stopped: a start that is killed counts up to its last checkpoint. A file that cannot be read or written ends no run.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from partialkd.context import RESULT, TIMES
from partialkd.errors import PartialKDError
from partialkd.storage.atomic_files import write_json

_log = logging.getLogger(__name__)


class Times:
    """Seconds of this start and of those before it."""

    def __init__(self, folder: Path, before: list[dict[str, Any]], writes: bool, began: float) -> None:
        """before: `earlier_starts`, read by rank 0; writes: on rank 0; began: by `time.perf_counter`."""
        self._path, self._before, self._writes, self._began = folder / TIMES, before, writes, began
        self._phases: dict[str, float] = {}
        self._running: tuple[str, float] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what is done inside the `with` block to a phase."""
        began = time.perf_counter()
        self._running = name, began
        try:
            yield
        finally:
            self._running = None
            self.add(name, time.perf_counter() - began)
            self.note()

    def add(self, name: str, seconds: float) -> None:
        """Count these seconds to `name`."""
        self._phases[name] = self._phases.get(name, 0.0) + seconds

    def move(self, name: str, to: str, seconds: float) -> None:
        """Count these seconds, which are part of `name`, to another."""
        if seconds:
            self.add(name, -seconds)
            self.add(to, seconds)

    def this_start(self) -> dict[str, Any]:
        """Seconds of this start so far."""
        phases = dict(self._phases)
        if self._running:
            name, began = self._running
            phases[name] = phases.get(name, 0.0) + time.perf_counter() - began
        return {"seconds": time.perf_counter() - self._began, "phase_seconds": phases}

    def all_starts(self) -> list[dict[str, Any]]:
        """Seconds of every start, this one last."""
        return [*self._before, self.this_start()]

    def note(self) -> None:
        """Write down how long it has been."""
        if self._writes:
            try:
                write_json(self._path, {"starts": self.all_starts()})
            except (OSError, PartialKDError) as error:
                _log.warning(f"{self._path}: not written: {error}")


def summed(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of all starts together."""
    phases: dict[str, float] = {}
    for start in starts:
        for name, seconds in start["phase_seconds"].items():
            phases[name] = phases.get(name, 0.0) + seconds
    return {"seconds": sum(start["seconds"] for start in starts), "phase_seconds": phases}


def earlier_starts(folder: Path) -> list[dict[str, Any]]:
    """What is written down of earlier starts; of a run that an earlier version has finished, its result says it."""
    path = next((folder / name for name in (TIMES, RESULT) if (folder / name).exists()), None)
    if path is None:
        return []
    try:
        said = json.loads(path.read_bytes())
        return [_checked(start) for start in said.get("starts", [said])]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _log.warning(f"{path}: cannot be read, earlier starts are not counted: {type(error).__name__}: {error}")
        return []


def _checked(start: dict[str, Any]) -> dict[str, Any]:
    phases = {str(name): float(seconds) for name, seconds in start["phase_seconds"].items()}
    seconds = float(start["seconds"])
    if not all(map(math.isfinite, (seconds, *phases.values()))):
        raise ValueError("seconds must be finite numbers")
    return {"seconds": seconds, "phase_seconds": phases}
