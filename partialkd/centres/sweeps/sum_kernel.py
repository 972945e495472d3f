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
widest matrix instructions, but D is never split, so that no cosine is computed twice). At D = 512 in bfloat16, 64 held
rows take 64 KB and two stages of 64 streamed rows 128 KB; ptxas reports 255 registers and nothing spilled. Each byte
streamed meets 4 * held / itemsize operations, 128 at D = 512, so the L2 cache would have to deliver 6 TB/s to keep
pace with 790 TFLOP/s: this, and not the arithmetic, is expected to be the limit there. float32 products without TF32
are no matter of matrix units and spill heavily: they are there to be exact, not fast.

Shapes: unit (R, D) float32 or bfloat16, contiguous; x (N, D) of the same type; own (N,) int32, the row of the sample's
class or -1; rows (n,) int32, each once, -1 for none, or None for all R. Any N, R, and D up to 1024; offsets are 64-bit.
Products in the type of `unit` (float32: no TF32), sums and exp in float32. Importing this module imports Triton.
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


@triton.jit(do_not_specialize=["samples", "count", "tiles_per_split"])
def sums_kernel(
    x_ptr: tl.tensor, unit_ptr: tl.tensor, own_ptr: tl.tensor, rows_ptr: tl.tensor,
    total_ptr: tl.tensor, partition_ptr: tl.tensor,
    samples: tl.tensor, count: tl.tensor, tiles_per_split: tl.tensor, scale: tl.tensor, offset: tl.tensor,
    LISTED: tl.constexpr, UPCAST: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    HELD: tl.constexpr, STREAMED: tl.constexpr,
) -> None:  # fmt: skip
    """Write total (splits, N, D) and partition (splits, N); grid (blocks of samples, splits)."""
    sample = tl.program_id(0) * HELD + tl.arange(0, HELD)
    dim = tl.arange(0, WIDTH)
    at_x = sample[:, None].to(tl.int64) * D + dim[None, :]
    inside = (sample < samples)[:, None] & (dim < D)[None, :]
    x = tl.load(x_ptr + at_x, mask=inside, other=0.0)
    if UPCAST:
        x = x.to(tl.float32)
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
        if UPCAST:
            unit = unit.to(tl.float32)
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
        LISTED=rows is not None, **compiled_for(dim, tiles),
    )  # fmt: skip
    return total.sum(0), partition.sum(0)


def compiled_for(dim: int, tiles: Tiles) -> dict[str, Any]:
    """Constants that kernels are compiled for. The interpreter's bfloat16 products are wrong: it takes float32."""
    return {
        "UPCAST": INTERPRETED, "D": dim, "WIDTH": width_of(dim),
        "HELD": tiles.held, "STREAMED": tiles.streamed, "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
