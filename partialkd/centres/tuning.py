"""Tile sizes of the fused kernels: a small pinned set, the fastest of which is measured once and kept on the disk.

The faster backend of a shape is kept there too (partialkd.centres.measured).

The file is partialkd/tuning.json under XDG_CACHE_HOME (~/.cache), keyed by kernel, device name, type, D and the power
of two that N falls into; it is replaced as a whole, and a rank whose entry is lost to another's measures again. A
file that cannot be read as such is measured anew. With torch's deterministic algorithms nothing is measured and the
first that fits is taken, so that sums are added in the same order on every machine of a kind.

`fits` is an estimate for the matrix units' operands, of which the module `kernels` says more; what still does not
fit a device is left out when it is measured.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from partialkd.storage.atomic_files import write_json

ACCUMULATORS = 32768  # float32 sums a program may hold: half of a processor's registers
ACCUMULATORS_A_THREAD = 128  # of 255 registers
LARGEST_DIM = 1024


@dataclass(frozen=True)
class Tiles:
    """One way to cut the work. `held`, `streamed`: rows and samples, see `kernels`; at least 16 each."""

    held: int
    streamed: int
    warps: int
    stages: int

    def fits(self, dim: int, itemsize: int, shared_bytes: int) -> bool:
        """Whether sums of this width fit into registers, and the tiles into shared memory."""
        width = width_of(dim)
        tiles = (self.held + self.stages * self.streamed) * width + self.held * self.streamed
        sums = self.held * width
        threads = 32 * self.warps
        return sums <= min(ACCUMULATORS, ACCUMULATORS_A_THREAD * threads) and tiles * itemsize <= shared_bytes


# By bytes an element; the first that fits is the default. Matrix units want 64 held or more, and 16 x 16 of everything.
PINNED = {
    2: (
        Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 3), Tiles(128, 128, 8, 2), Tiles(64, 64, 8, 2), Tiles(64, 32, 8, 3),
        Tiles(64, 32, 8, 2), Tiles(32, 32, 8, 2), Tiles(32, 16, 8, 3), Tiles(32, 16, 8, 2),
    ),
    4: (Tiles(64, 16, 8, 1), Tiles(32, 32, 8, 1), Tiles(32, 16, 8, 1), Tiles(16, 16, 8, 1), Tiles(16, 16, 4, 1)),
}  # fmt: skip
TRIED = 4  # of those that fit


def width_of(dim: int) -> int:
    """The power of two that D is padded to."""
    return max(16, 1 << (dim - 1).bit_length())


def candidates(dim: int, itemsize: int, shared_bytes: int) -> list[Tiles]:
    """Those of the pinned set that fit, the default first."""
    found = [tiles for tiles in PINNED[itemsize] if tiles.fits(dim, itemsize, shared_bytes)]
    if not found:
        raise ValueError(f"no tiles for D = {dim} in {shared_bytes} bytes of shared memory")
    return found[:TRIED]


def splits_of(blocks: int, tiles: int, processors: int) -> int:
    """Into how many parts the rows are split so that `blocks` x splits programs leave few processors idle.

    At most two rounds of programs, and no more splits than there are tiles of rows.
    """

    def busy(splits: int) -> float:
        rounds = -(-blocks * splits // processors)
        return blocks * splits / (rounds * processors)

    numbers = range(1, max(1, min(tiles, 2 * processors // blocks)) + 1)
    best = max(busy(splits) for splits in numbers)
    return next(splits for splits in numbers if busy(splits) == best)


class Tuner:
    """The fastest tiles by key, from the file or measured now."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self._known: dict[str, Tiles] = {}

    def choose(self, key: str, tried: list[Tiles], seconds: Callable[[Tiles], float | None]) -> Tiles:
        """seconds(tiles): the time of one run, None where they do not fit the device."""
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
        """What the file says of this key; None: nothing."""
        return self._read().get(key)

    def keep(self, key: str, value: Any) -> None:
        """Write it to the file; where that cannot be done, warn."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {**self._read(), key: value})
        except OSError as error:
            warnings.warn(f"{self.path}: the tuning of {key} is not kept: {error}", stacklevel=2)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_bytes())
        except (OSError, ValueError):  # not there yet, not readable or damaged: as good as not there
            return {}
        return found if isinstance(found, dict) else {}


def default_path() -> Path:
    """Where the tuning is kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "partialkd" / "tuning.json"
