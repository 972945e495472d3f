"""Choose tiles of the Triton kernels: which fit, and which are tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["bf16", "fp32", "rounded"]  # what is streamed and multiplied; rounded: float32 streamed, bf16 multiplied

TRIED = 4  # of those that fit
# float32 sums that a program may hold: half of a processor's registers. Without matrix units operands need them too.
ACCUMULATORS: dict[Kind, int] = {"bf16": 32768, "fp32": 8192, "rounded": 32768}
# Sums and terms that a thread may hold, of 255 registers: with more the compiler spills.
PER_THREAD: dict[Kind, int] = {"bf16": 160, "fp32": 96, "rounded": 160}
LARGEST_DIM = 1024
WIDE = 64  # held rows that Hopper's matrix instructions take; fewer are tried where so many do not fit
NARROW_TERMS = 128  # of one matrix instruction where fewer are held: a warp without so many computes another's again


@dataclass(frozen=True)
class Tiles:
    """One way to cut the work. `held`, `streamed`: rows and samples, see sum_kernel.py; at least 16 each."""

    held: int
    streamed: int
    warps: int
    stages: int

    def fits(self, dim: int, kind: Kind, shared_bytes: int) -> bool:
        """Whether sums of this width fit into registers, and the tiles into shared memory (an upper estimate)."""
        width = width_of(dim)
        left = PER_THREAD[kind] * 32 * self.warps - self.held * self.streamed
        in_registers = self.held * width <= min(max(ACCUMULATORS[kind], 16 * width), left)
        return in_registers and self.shared(width, kind) <= shared_bytes

    def shared(self, width: int, kind: Kind) -> int:
        """Bytes of shared memory: held rows, stages of streamed ones, and terms on their way between the products."""
        held, streamed, terms = self.held * width, self.streamed * width, self.held * self.streamed
        if kind == "fp32":
            return (held + self.stages * streamed + terms) * 4
        if self.held < WIDE:  # the stage at work is in registers, rounded there too; terms are float32, and again so
            return held * 2 + (self.stages - 1) * streamed * (4 if kind == "rounded" else 2) + terms * 8
        if kind == "rounded":  # a stage of float32 rows fewer, and two of what they are rounded to
            return (held + 2 * streamed) * 2 + (self.stages - 1) * streamed * 4
        return (held + self.stages * streamed + terms) * 2


# The first that fits is the default. Matrix units want 64 held or more, and 16 x 16 of everything. What the compiler
# makes of each is in benchmarks/results/kernels_sm90.json.
PINNED: dict[Kind, tuple[Tiles, ...]] = {
    "bf16": (
        Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 3), Tiles(128, 128, 8, 2), Tiles(64, 64, 8, 2), Tiles(64, 32, 8, 4),
        Tiles(64, 32, 8, 3), Tiles(64, 32, 8, 2), Tiles(32, 32, 8, 3), Tiles(32, 32, 8, 2),
    ),
    "rounded": (
        Tiles(128, 64, 8, 2), Tiles(128, 32, 8, 2), Tiles(128, 64, 8, 1), Tiles(64, 32, 8, 2), Tiles(64, 64, 8, 1),
        Tiles(64, 32, 8, 1), Tiles(32, 32, 8, 2), Tiles(32, 16, 8, 2),
    ),
    "fp32": (Tiles(64, 16, 8, 1), Tiles(32, 16, 8, 1), Tiles(16, 16, 8, 1), Tiles(16, 16, 4, 1)),
}  # fmt: skip


def kind_of(streamed: torch.dtype, multiplied: torch.dtype) -> Kind:
    """Name what a kernel streams and multiplies."""
    if multiplied == torch.float32:
        return "fp32"
    return "bf16" if streamed == torch.bfloat16 else "rounded"


def width_of(dim: int) -> int:
    """The power of two that D is padded to."""
    return max(16, 1 << (dim - 1).bit_length())


def candidates(dim: int, kind: Kind, shared_bytes: int) -> list[Tiles]:
    """List those of the pinned set that fit, the default first."""
    found = [tiles for tiles in PINNED[kind] if tiles.fits(dim, kind, shared_bytes)]
    if not found:
        raise ValueError(f"no tiles for D = {dim} in {shared_bytes} bytes of shared memory")
    wide = [tiles for tiles in found if tiles.held >= WIDE]
    shared_out = [tiles for tiles in found if tiles.held * tiles.streamed >= NARROW_TERMS * tiles.warps]
    return (found if kind == "fp32" else wide or shared_out or found)[:TRIED]


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
