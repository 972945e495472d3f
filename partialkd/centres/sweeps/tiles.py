"""Choose tiles of the Triton kernels: which fit, and which are tried."""

from __future__ import annotations

from dataclasses import dataclass

TRIED = 4  # of those that fit
ACCUMULATORS = 32768  # float32 sums a program may hold: half of a processor's registers
ACCUMULATORS_PER_THREAD = 128  # of 255 registers
LARGEST_DIM = 1024


@dataclass(frozen=True)
class Tiles:
    """One way to cut the work. `held`, `streamed`: rows and samples, see sum_kernel.py; at least 16 each."""

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
        return sums <= min(ACCUMULATORS, ACCUMULATORS_PER_THREAD * threads) and tiles * itemsize <= shared_bytes


# By bytes an element; the first that fits is the default. Matrix units want 64 held or more, and 16 x 16 of everything.
PINNED = {
    2: (
        Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 3), Tiles(128, 128, 8, 2), Tiles(64, 64, 8, 2), Tiles(64, 32, 8, 3),
        Tiles(64, 32, 8, 2), Tiles(32, 32, 8, 2), Tiles(32, 16, 8, 3), Tiles(32, 16, 8, 2),
    ),
    4: (Tiles(64, 16, 8, 1), Tiles(32, 32, 8, 1), Tiles(32, 16, 8, 1), Tiles(16, 16, 8, 1), Tiles(16, 16, 4, 1)),
}  # fmt: skip


def width_of(dim: int) -> int:
    """The power of two that D is padded to."""
    return max(16, 1 << (dim - 1).bit_length())


def candidates(dim: int, itemsize: int, shared_bytes: int) -> list[Tiles]:
    """List those of the pinned set that fit, the default first."""
    found = [tiles for tiles in PINNED[itemsize] if tiles.fits(dim, itemsize, shared_bytes)]
    if not found:
        raise ValueError(f"no tiles for D = {dim} in {shared_bytes} bytes of shared memory")
    return found[:TRIED]


def splits_of(blocks: int, tiles: int, processors: int) -> int:
    """Choose into how many parts rows are split, so that `blocks` x splits programs leave few processors idle.

    At most two rounds of programs, and no more splits than there are tiles of rows.
    """

    def busy(splits: int) -> float:
        rounds = -(-blocks * splits // processors)
        return blocks * splits / (rounds * processors)

    numbers = range(1, max(1, min(tiles, 2 * processors // blocks)) + 1)
    best = max(busy(splits) for splits in numbers)
    return next(splits for splits in numbers if busy(splits) == best)
