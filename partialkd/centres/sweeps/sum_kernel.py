"""Sum over rows by one Triton kernel; and what it shares with those that move rows (row_kernels.py).

All kernels are attention with keys = values = unit centres, without a maximum to carry since logits are bounded. One
side of the product is *held*, D wide, with its sums in registers; the other is *streamed* past it in tiles, each read
once and multiplied with twice:

- `sums_kernel` holds samples and streams rows: cosines, p = exp(scale * cosine - offset), then Z += sum p, O += p U.
  Rows are split over programs; every split writes sums of its own, which are added in a fixed order: no atomics, the
  same result in every run with the same tiles. Samples change fastest in the grid, so that the programs that run
  together read the same rows, once from memory and then from the L2 cache.
- Those of `row_kernels` hold rows and stream samples.

Tiles: 64 K registers of 32 bits and 227 KB of shared memory per processor (H100, H200). The held sums may fill half of
the registers, held * D <= 32768: 128 samples at D <= 256, 64 at D = 512, 32 at D = 1024 (too narrow for Hopper's
widest matrix instructions).

A loop's terms are computed under `if start < last`, which always holds. Without it Triton sees that one product feeds
the other and gives every warpgroup whole rows of both, as attention wants it whose rows have a maximum; 64 held samples
have rows for one warpgroup only, and the second would compute the same cosines again: 1.5 times the multiply-adds
needed. Behind the `if` it divides the columns: none is computed twice, the terms go through shared memory, and the
second product runs on while the next terms begin. benchmarks/compiled_kernels.py counts what is executed.

What limits it at D = 512, by counts for an H100 at 64 streamed rows: 2048 cycles of products per tile; 2700 cycles of
shared memory, most of it the cosines' (each warpgroup reads all held samples for half of the streamed rows); and 64 KB
from the L2 cache, 2500 cycles at 6 TB/s. So shared memory comes first, about three quarters of the matrix units' pace,
and the L2 cache close behind. No GPU has measured it. A schedule as FlashMLA's (whole cosines in turns by the
warpgroups, TMA) would need less shared memory; Triton's language cannot say it.

float32 products without TF32 are no matter of matrix units: they are there to be exact, not fast. `ROUNDED`: float32
rows are rounded to bfloat16 as they are read.

Shapes: unit (R, D) float32 or bfloat16, contiguous; x (N, D) of the same type, or bfloat16; own (N,) int32, the row
of the sample's class or -1; rows (n,) int32, each once, -1 for none, or None for all R. Any N, R, and D up to 1024;
offsets are 64-bit. Products in the type of x (float32: no TF32), sums and exp in float32. Importing this
module imports Triton.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

from partialkd.centres.sweeps.tiles import Tiles, width_of

LOG2_E = math.log2(math.e)
INTERPRETED = triton.knobs.runtime.interpret
DOES_NOT_FIT = OutOfResources  # raised where a device has too little shared memory for the tiles


@triton.jit
def operand(values: tl.tensor, ROUNDED: tl.constexpr, UPCAST: tl.constexpr) -> tl.tensor:
    """Turn loaded values into what is multiplied with: as they are, or rounded to bfloat16.

    UPCAST: for the interpreter, whose own bfloat16 numbers are cut off, and multiplied wrongly.
    """
    if ROUNDED and UPCAST:
        bits = values.to(tl.uint32, bitcast=True) + 0x8000
        values = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    elif ROUNDED:
        values = values.to(tl.bfloat16)
    elif UPCAST:
        values = values.to(tl.float32)
    return values


@triton.jit(do_not_specialize=["samples", "count", "tiles_per_split"])
def sums_kernel(
    x_ptr: tl.tensor, unit_ptr: tl.tensor, own_ptr: tl.tensor, rows_ptr: tl.tensor,
    total_ptr: tl.tensor, partition_ptr: tl.tensor,
    samples: tl.tensor, count: tl.tensor, tiles_per_split: tl.tensor, scale: tl.tensor, offset: tl.tensor,
    LISTED: tl.constexpr, ROUNDED: tl.constexpr, UPCAST: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    HELD: tl.constexpr, STREAMED: tl.constexpr,
) -> None:  # fmt: skip
    """Write total (splits, N, D) and partition (splits, N); grid (blocks of samples, splits)."""
    sample = tl.program_id(0) * HELD + tl.arange(0, HELD)
    dim = tl.arange(0, WIDTH)
    at_x = sample[:, None].to(tl.int64) * D + dim[None, :]
    inside = (sample < samples)[:, None] & (dim < D)[None, :]
    x = operand(tl.load(x_ptr + at_x, mask=inside, other=0.0), False, UPCAST)
    own = tl.load(own_ptr + sample, mask=sample < samples, other=-1)
    total = tl.zeros([HELD, WIDTH], dtype=tl.float32)
    partition = tl.zeros([HELD], dtype=tl.float32)
    first = tl.program_id(1) * tiles_per_split * STREAMED
    last = tl.minimum(first + tiles_per_split * STREAMED, count)
    for start in range(first, last, STREAMED):
        place = start + tl.arange(0, STREAMED)
        there = place < last
        row = place
        if LISTED:
            row = tl.load(rows_ptr + place, mask=there, other=-1)
            there = row >= 0
        at_unit = row[:, None].to(tl.int64) * D + dim[None, :]
        unit = tl.load(unit_ptr + at_unit, mask=there[:, None] & (dim < D)[None, :], other=0.0)
        unit = operand(unit, ROUNDED, UPCAST)
        terms = tl.zeros([HELD, STREAMED], dtype=tl.float32)
        if start < last:  # always: the module's docstring says why
            cosine = tl.dot(x, tl.trans(unit), input_precision="ieee")
            terms = tl.exp2(cosine * scale - offset)
            terms = tl.where(there[None, :] & (row[None, :] != own[:, None]), terms, 0.0)
        partition += tl.sum(terms, 1)
        total = tl.dot(terms.to(unit.dtype), unit, total, input_precision="ieee")
    split = tl.program_id(1).to(tl.int64) * samples
    tl.store(total_ptr + split * D + at_x, total, mask=inside)
    tl.store(partition_ptr + split + sample, partition, mask=sample < samples)


def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may have on this GPU."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]


def sums(
    unit: Tensor, x: Tensor, own: Tensor, rows: Tensor | None, scale: float, offset: float, tiles: Tiles, splits: int
) -> tuple[Tensor, Tensor]:
    """Sum over rows -> O (N, D), Z (N,), float32. Extra memory: `splits` times that."""
    samples, dim = x.shape
    count = len(unit) if rows is None else len(rows)
    tiles_per_split = triton.cdiv(triton.cdiv(count, tiles.streamed), splits)
    total = torch.empty(splits, samples, dim, dtype=torch.float32, device=x.device)
    partition = torch.empty(splits, samples, dtype=torch.float32, device=x.device)
    sums_kernel[triton.cdiv(samples, tiles.held), splits](
        x, unit, own, own if rows is None else rows, total, partition,
        samples, count, tiles_per_split, scale * LOG2_E, offset * LOG2_E,
        LISTED=rows is not None, **compiled_for(dim, tiles, unit.dtype != x.dtype),
    )  # fmt: skip
    return total.sum(0), partition.sum(0)


def compiled_for(dim: int, tiles: Tiles, rounded: bool) -> dict[str, Any]:
    """Constants that kernels are compiled for; rounded: rows to bfloat16, as they are read.

    The interpreter's bfloat16 products are wrong: it takes float32.
    """
    return {
        "ROUNDED": rounded, "UPCAST": INTERPRETED, "D": dim, "WIDTH": width_of(dim),
        "HELD": tiles.held, "STREAMED": tiles.streamed, "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
