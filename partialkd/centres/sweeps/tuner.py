"""Measure once what is fastest on this machine, and keep it on the disk.

Kept are, by shape, the tile sizes of the fused kernels (tiles) and the fastest backend (fastest). The file is
partialkd/tuning.json under XDG_CACHE_HOME (~/.cache), keyed by kernel, device name, type, D and the power of two that
N falls into; it is replaced as a whole, and a rank whose entry is lost to another's measures again. A file that cannot
be read as such is measured anew. With torch's deterministic algorithms nothing is measured and the first that fits is
taken, so that sums are added in the same order on every machine of a kind.

Tiles.fits is an estimate; what still does not fit a device is left out when it is measured.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps.tiles import Tiles
from partialkd.errors import PartialKDWarning, StorageError
from partialkd.storage.atomic_files import write_json

TUNING_ROWS, LEAST_ROWS = 1 << 15, 1 << 10  # measured with at most so many, and not at all with fewer than the latter


class Tuner:
    """A file of what was measured to be fastest, by key; what it lacks is measured now."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self._known: dict[str, Tiles] = {}

    def choose(self, key: str, tried: list[Tiles], seconds: Callable[[Tiles], float | None]) -> Tiles:
        """The fastest tiles of those to be tried. seconds(tiles): of one run, None where they do not fit the device."""
        if key not in self._known:
            kept = self.kept(key)
            found = next((tiles for tiles in tried if asdict(tiles) == kept), None)
            self._known[key] = found or self._measure(key, tried, seconds)
        return self._known[key]

    def _measure(self, key: str, tried: list[Tiles], seconds: Callable[[Tiles], float | None]) -> Tiles:
        times = {tiles: took for tiles in tried if (took := seconds(tiles)) is not None}
        if not times:
            raise RuntimeError(f"{key}: none of the tiles fits this device: {tried}")
        best = min(times, key=lambda tiles: times[tiles])
        self.keep(key, asdict(best))
        return best

    def kept(self, key: str) -> Any:
        """Look up this key in the file; None: it is not there."""
        return self._read().get(key)

    def keep(self, key: str, value: Any) -> None:
        """Write it to the file; where that cannot be done, warn."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {**self._read(), key: value})
        except (OSError, StorageError, ValueError) as error:  # ValueError: NaN in the file
            warnings.warn(f"{self.path}: the tuning of {key} is not kept: {error}", PartialKDWarning, stacklevel=2)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):  # not there yet, not readable or damaged: as good as not there
            return {}
        return found if isinstance(found, dict) else {}


def shape_of(work: str, store: CentreStore, samples: int, rows: int | None) -> str:
    """Say in words what the speed of this work depends on; rows: worked on, where they are few."""
    bucket = 1 << (samples - 1).bit_length()
    few = "" if rows is None else f", R {1 << (rows - 1).bit_length()}"
    device = torch.cuda.get_device_name(store.device) if store.device.type == "cuda" else store.device.type
    return f"{work}, {device}, {store.unit.dtype}, D {store.dim}, N {bucket}{few}"


def seconds_on_gpu(run: Callable[[], object]) -> float:
    """Time the shortest of five runs on the GPU after two to warm up."""
    run(), run()
    took = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        took.append(begin.elapsed_time(end) / 1000)
    return min(took)


def default_path() -> Path:
    """Path of the file that keeps the tuning between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "partialkd" / "tuning.json"
