"""The sweep and the movement of trainable rows as one Triton kernel each. Never run on a GPU yet.

What was checked: their logic in Triton's interpreter (float32), and that they compile for compute capability 9.0
within its registers and shared memory. Speed, and bfloat16 products on the device, have not been seen by anyone.

Both are attention with keys = values = unit centres, without a maximum to carry since logits are bounded. One side
of the product is *held*, D wide, with its sums in registers; the other is *streamed* past it in tiles, each read once
and multiplied with twice:

- `sums_kernel` holds samples and streams rows: cosines, p = exp(scale * cosine - offset), then Z += sum p, O += p U.
  Rows are split over programs; every split writes sums of its own, which are added in a fixed order: no atomics, the
  same result in every run with the same tiles. Samples change fastest in the grid, so that the programs that run
  together read the same rows, once from memory and then from the L2 cache.
- `sgd_kernel` holds rows and streams samples: p again, G += (weight * p)^T X, and then at once, still in registers, the
  gradient through the normalisation, momentum, weight decay and the split into direction and length.

Tiles: 64 K registers of 32 bits and 227 KB of shared memory a processor (H100, H200). The held sums may fill half of
the registers, held * D <= 32768: 128 samples at D <= 256, 64 at D = 512, 32 at D = 1024 (too narrow for Hopper's
widest matrix instructions, but D is never split, so that no cosine is computed twice). At D = 512 in bfloat16, 64 held
rows take 64 KB and two stages of 64 streamed rows 128 KB; ptxas reports 252 registers and nothing spilled for the
first kernel, 255 and 88 bytes for the second, which for that reason moves its rows in narrow parts. Each byte streamed
meets 4 * held / itemsize operations, 128 at D = 512, so the L2 cache would have to deliver 6 TB/s to keep pace with
790 TFLOP/s: this, and not the arithmetic, is expected to be the limit there. float32 products without TF32 are no
matter of matrix units and spill heavily: they are there to be exact, not fast.

Shapes: unit (R, D) float32 or bfloat16, contiguous; x (N, D) of the same type; own (N,) int32, the row of the sample's
class or -1; rows (n,) int32, each once, or None for all R. Any N, R, and D up to 1024; offsets are 64-bit. Products
in the type of `unit` (float32: no TF32), sums and exp in float32. Importing this module imports Triton.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

from partialkd.centres.tuning import Tiles, width_of

PART = 4096  # numbers of a row block that are moved at once: 16 registers a thread of 8 warps
LOG2_E = math.log2(math.e)
INTERPRETED = triton.knobs.runtime.interpret
DOES_NOT_FIT = OutOfResources  # raised where a device has too little shared memory for the tiles


@triton.jit(do_not_specialize=["samples", "count", "tiles_a_split"])
def sums_kernel(
    x_ptr: tl.tensor, unit_ptr: tl.tensor, own_ptr: tl.tensor, rows_ptr: tl.tensor,
    total_ptr: tl.tensor, partition_ptr: tl.tensor,
    samples: tl.tensor, count: tl.tensor, tiles_a_split: tl.tensor, scale: tl.tensor, offset: tl.tensor,
    LISTED: tl.constexpr, UPCAST: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    HELD: tl.constexpr, STREAMED: tl.constexpr,
) -> None:  # fmt: skip
    """total (splits, N, D), partition (splits, N); grid (blocks of samples, splits)."""
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
    first = tl.program_id(1) * tiles_a_split * STREAMED
    last = tl.minimum(first + tiles_a_split * STREAMED, count)
    for start in range(first, last, STREAMED):
        place = start + tl.arange(0, STREAMED)
        there = place < last
        row = place
        if LISTED:
            row = tl.load(rows_ptr + place, mask=there, other=0)
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


@triton.jit
def mixed(x: tl.tensor) -> tl.tensor:
    """uint32 -> uint32, as partialkd.centres.hashing.mix_word."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def rounded(
    values: tl.tensor, key: tl.tensor, row: tl.tensor, d: tl.tensor, dtype: tl.constexpr, DRAWN: tl.constexpr
) -> tl.tensor:
    """float32 (n, m) -> dtype, to nearest or, with DRAWN and bfloat16, by random bits of (key, row, column)."""
    if DRAWN and dtype == tl.bfloat16:
        words = (mixed(row.to(tl.uint32) ^ key.to(tl.uint32)) | 1)[:, None] * (mixed(d.to(tl.uint32) + 1) | 1)[None, :]
        words = (words ^ (words >> 16)) * 0x7FEB352D
        bits = (values.to(tl.uint32, bitcast=True) + (words >> 16)) & 0xFFFF0000
        values = tl.where(values == values, bits.to(tl.float32, bitcast=True), values)  # NaN stays what it is
    return values.to(dtype)


@triton.jit(do_not_specialize=["samples", "count", "unit_key", "momentum_key", "first_class"])
def sgd_kernel(
    x_ptr: tl.tensor, unit_ptr: tl.tensor, length_ptr: tl.tensor, momentum_ptr: tl.tensor, own_ptr: tl.tensor,
    rows_ptr: tl.tensor, weight_ptr: tl.tensor, target_ptr: tl.tensor,
    samples: tl.tensor, count: tl.tensor, scale: tl.tensor, offset: tl.tensor,
    lr: tl.tensor, momentum: tl.tensor, decay: tl.tensor, tiny: tl.tensor,
    unit_key: tl.tensor, momentum_key: tl.tensor, first_class: tl.tensor, DRAWN: tl.constexpr,
    LISTED: tl.constexpr, UPCAST: tl.constexpr, MOMENTUM: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    HELD: tl.constexpr, STREAMED: tl.constexpr, PARTS: tl.constexpr,
) -> None:  # fmt: skip
    """Rows of unit, length and momentum, moved in place; grid (blocks of rows,)."""
    place = tl.program_id(0) * HELD + tl.arange(0, HELD)
    there = place < count
    row = place
    if LISTED:
        row = tl.load(rows_ptr + place, mask=there, other=0)
    dim = tl.arange(0, WIDTH)
    at_unit = row[:, None].to(tl.int64) * D + dim[None, :]
    inside = there[:, None] & (dim < D)[None, :]
    unit = tl.load(unit_ptr + at_unit, mask=inside, other=0.0)
    if UPCAST:
        unit = unit.to(tl.float32)
    gradient = tl.zeros([HELD, WIDTH], dtype=tl.float32)
    radial = tl.zeros([HELD], dtype=tl.float32)  # <G, u>, from the cosines
    for start in range(0, samples, STREAMED):
        sample = start + tl.arange(0, STREAMED)
        known = sample < samples
        at_x = sample[:, None].to(tl.int64) * D + dim[None, :]
        x = tl.load(x_ptr + at_x, mask=known[:, None] & (dim < D)[None, :], other=0.0)
        if UPCAST:
            x = x.to(tl.float32)
        own = tl.load(own_ptr + sample, mask=known, other=-1)
        weight = tl.load(weight_ptr + sample, mask=known, other=0.0)
        target = tl.load(target_ptr + sample, mask=known, other=0.0)
        cosine = tl.dot(unit, tl.trans(x), input_precision="ieee")
        terms = tl.exp2(cosine * scale - offset) * weight[None, :]
        terms = tl.where(row[:, None] == own[None, :], target[None, :], terms)
        radial += tl.sum(terms * cosine, 1)
        gradient = tl.dot(terms.to(x.dtype), x, gradient, input_precision="ieee")
    length = tl.load(length_ptr + row, mask=there, other=1.0)
    inverse = 1.0 / tl.maximum(length, tiny)
    along = decay * length - radial * inverse
    # The gradient fills half of the registers: what meets it comes in parts of the width, once for the new length and
    # once more for the rest.
    parts = tl.reshape(gradient * inverse[:, None], [HELD, PARTS, WIDTH // PARTS])
    index = tl.arange(0, PARTS)[None, :, None]
    part_dim = tl.arange(0, WIDTH // PARTS)
    squares = tl.zeros([HELD], dtype=tl.float32)
    for again in range(2):
        new_length = tl.sqrt(squares)
        shorten = 1.0 / tl.maximum(new_length, tiny)
        for part in range(PARTS):
            d = part * (WIDTH // PARTS) + part_dim
            at = row[:, None].to(tl.int64) * D + d[None, :]
            mask = there[:, None] & (d < D)[None, :]
            old = tl.load(unit_ptr + at, mask=mask, other=0.0).to(tl.float32)
            step = tl.sum(tl.where(index == part, parts, 0.0), 1) + old * along[:, None]
            if MOMENTUM:
                step += momentum * tl.load(momentum_ptr + at, mask=mask, other=0.0).to(tl.float32)
            centre = old * length[:, None] - lr * step
            if again == 0:
                squares += tl.sum(centre * centre, 1)
            else:
                if MOMENTUM:
                    moment = rounded(step, momentum_key, first_class + row, d, momentum_ptr.dtype.element_ty, DRAWN)
                    tl.store(momentum_ptr + at, moment, mask=mask)
                centre *= shorten[:, None]
                direction = rounded(centre, unit_key, first_class + row, d, unit_ptr.dtype.element_ty, DRAWN)
                tl.store(unit_ptr + at, direction, mask=mask)
    tl.store(length_ptr + row, tl.sqrt(squares), mask=there)


def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may have on this GPU."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]


def sums(
    unit: Tensor, x: Tensor, own: Tensor, rows: Tensor | None, scale: float, offset: float, tiles: Tiles, splits: int
) -> tuple[Tensor, Tensor]:
    """-> O (N, D), Z (N,), float32. Extra memory: `splits` times that."""
    samples, dim = x.shape
    count = len(unit) if rows is None else len(rows)
    tiles_a_split = triton.cdiv(triton.cdiv(count, tiles.streamed), splits)
    total = torch.empty(splits, samples, dim, dtype=torch.float32, device=x.device)
    partition = torch.empty(splits, samples, dtype=torch.float32, device=x.device)
    sums_kernel[triton.cdiv(samples, tiles.held), splits](
        x, unit, own, own if rows is None else rows, total, partition,
        samples, count, tiles_a_split, scale * LOG2_E, offset * LOG2_E,
        LISTED=rows is not None, **_shared(dim, tiles),
    )  # fmt: skip
    return total.sum(0), partition.sum(0)


def move_sgd(
    unit: Tensor, length: Tensor, moment: Tensor | None, x: Tensor, own: Tensor, rows: Tensor | None,
    weight: Tensor, target: Tensor, scale: float, offset: float,
    lr: float, momentum: float, decay: float, tiny: float, keys: tuple[int, int] | None, first_class: int, tiles: Tiles,
) -> None:  # fmt: skip
    """Move unit (R, D), length (R,) and moment (R, D) in place.

    weight (N,): dL/dc_ij / p_ij; target (N,): dL/dc_iy. A length below `tiny` counts as `tiny`. With `keys` (under
    2**31), bfloat16 units and moments are rounded stochastically, by bits drawn from (key, class id, column).
    """
    samples, dim = x.shape
    count = len(unit) if rows is None else len(rows)
    parts = max(1, tiles.held * width_of(dim) // PART)
    sgd_kernel[(triton.cdiv(count, tiles.held),)](
        x, unit, length, unit if moment is None else moment, own, own if rows is None else rows, weight, target,
        samples, count, scale * LOG2_E, offset * LOG2_E, lr, momentum, decay, tiny,
        *(keys or (0, 0)), first_class, DRAWN=keys is not None,
        LISTED=rows is not None, MOMENTUM=moment is not None, PARTS=parts, **_shared(dim, tiles),
    )  # fmt: skip


def _shared(dim: int, tiles: Tiles) -> dict[str, Any]:
    """What both kernels are compiled for. The interpreter's bfloat16 products are wrong: it multiplies in float32."""
    return {
        "UPCAST": INTERPRETED, "D": dim, "WIDTH": width_of(dim),
        "HELD": tiles.held, "STREAMED": tiles.streamed, "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
