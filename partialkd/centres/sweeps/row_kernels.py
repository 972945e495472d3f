"""Move trainable rows by one Triton kernel: SGD, or AdamW with one second moment per row.

Tiles, shapes and types: sum_kernel.py. Rows are held and samples streamed: p is computed again, G += (weight * p)^T X
with G = dL/du, and then at once, while G is still in registers, the gradient through the normalisation, the optimiser
and the split into direction and length. G fills half of the registers: what meets it comes in parts of the width, once
for what the whole row must know and once more to be written.

- `sgd_kernel`: momentum and weight decay, as row_optimizers.RowSGD. The first time over the parts gives the new length.
- `adamw_kernel`: as row_optimizers.RowAdamW with second = "row". All numbers of a row take the same rate, so that the
  first time over the parts gives everything: the mean square of the gradient, and from <u, u>, <u, m>, <m, m> with m
  the first moment the length of a u - b m. Where a step nearly cancels the centre the unit row's own length is off by
  rounding; length * unit is not. 1 - beta^count is a series while it is small, exact to float32: the chunked path's is
  off by 1e-5 at beta 0.999 and the first step. With a full second moment numbers have rates of their own: no kernel.

Moments (R, D) float32 or bfloat16; second moment and count (R,) float32. Registers and stack by tiles:
benchmarks/results/kernels_sm90.json (bfloat16 rows and moments, stochastic rounding). With float32 rows and bfloat16
samples, rows are rounded for the products (`ROUNDED`), and move in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from partialkd.centres.sweeps.sum_kernel import LOG2_E, compiled_for, operand
from partialkd.centres.sweeps.tiles import Tiles, width_of

PART = 4096  # numbers of a row block that are moved at once: 16 registers per thread of 8 warps
LEAST_BETA = 1e-30  # stands for 0, which has no logarithm


@triton.jit
def mixed(x: tl.tensor) -> tl.tensor:
    """Mix a uint32 word, as partialkd.counter_random.mix_word."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def rounded(
    values: tl.tensor, key: tl.tensor, class_id: tl.tensor, d: tl.tensor, dtype: tl.constexpr, DRAWN: tl.constexpr
) -> tl.tensor:
    """Round float32 (n, m) to nearest or, with DRAWN and bfloat16, by random bits of (key, class id, column)."""
    if DRAWN and dtype == tl.bfloat16:
        words = (mixed(class_id.to(tl.uint32) ^ key.to(tl.uint32)) | 1)[:, None]
        words = words * (mixed(d.to(tl.uint32) + 1) | 1)[None, :]
        words = (words ^ (words >> 16)) * 0x7FEB352D
        bits = (values.to(tl.uint32, bitcast=True) + (words >> 16)) & 0xFFFF0000
        values = tl.where(values == values, bits.to(tl.float32, bitcast=True), values)  # NaN stays what it is
    return values.to(dtype)


@triton.jit
def part_of(parts: tl.tensor, part: tl.tensor, PARTS: tl.constexpr) -> tl.tensor:
    """Take one part of (n, PARTS, m) -> (n, m)."""
    index = tl.arange(0, PARTS)[None, :, None]
    return tl.sum(tl.where(index == part, parts, 0.0), 1)


@triton.jit
def columns(
    row: tl.tensor, there: tl.tensor, part: tl.tensor, D: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Find a part -> its columns (m,), where they lie in (R, D) (n, m), whether they are there (n, m)."""
    d = part * (WIDTH // PARTS) + tl.arange(0, WIDTH // PARTS)
    return d, row[:, None].to(tl.int64) * D + d[None, :], there[:, None] & (d < D)[None, :]


@triton.jit
def first_moment(
    gradient: tl.tensor, unit_at: tl.tensor, first_at: tl.tensor, mask: tl.tensor, along: tl.tensor, share: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Update the first moment of a part -> u, the gradient without what lies along u, the new moment; (n, m) each."""
    old = tl.load(unit_at, mask=mask, other=0.0).to(tl.float32)
    gradient -= old * along[:, None]
    first = tl.load(first_at, mask=mask, other=0.0).to(tl.float32)
    return old, gradient, first + share * (gradient - first)


@triton.jit
def one_less_power(count: tl.tensor, rate: tl.tensor) -> tl.tensor:
    """1 - beta^count with rate = -log beta > 0, also where that is small."""
    z = count * rate
    series = z * (1.0 - z / 2.0 * (1.0 - z / 3.0 * (1.0 - z / 4.0 * (1.0 - z / 5.0))))
    return tl.where(z < 0.1, series, 1.0 - tl.exp(-z))


@triton.jit
def held_rows(
    rows_ptr: tl.tensor, ids_ptr: tl.tensor, count: tl.tensor, first_row: tl.tensor, first_class: tl.tensor,
    LISTED: tl.constexpr, NAMED: tl.constexpr, HELD: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Find the rows of this program -> rows, whether there are that many, their class ids; (HELD,) each.

    They are those of a list, or from `first_row` on.
    """
    place = tl.program_id(0) * HELD + tl.arange(0, HELD)
    there = place < count
    row = place + first_row
    if LISTED:
        row = tl.load(rows_ptr + place, mask=there, other=-1)
        there = row >= 0
    class_id = first_class + row
    if NAMED:
        class_id = tl.load(ids_ptr + row, mask=there, other=0).to(tl.int32)
    return row, there, class_id


@triton.jit
def unit_gradient(
    x_ptr: tl.tensor, unit_ptr: tl.tensor, own_ptr: tl.tensor, weight_ptr: tl.tensor, target_ptr: tl.tensor,
    row: tl.tensor, there: tl.tensor, samples: tl.tensor, scale: tl.tensor, offset: tl.tensor,
    ROUNDED: tl.constexpr, UPCAST: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, HELD: tl.constexpr,
    STREAMED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Compute G = dL/du (HELD, WIDTH) and <G, u> (HELD,) from the cosines."""
    dim = tl.arange(0, WIDTH)
    at_unit = row[:, None].to(tl.int64) * D + dim[None, :]
    unit = tl.load(unit_ptr + at_unit, mask=there[:, None] & (dim < D)[None, :], other=0.0)
    unit = operand(unit, ROUNDED, UPCAST)
    gradient = tl.zeros([HELD, WIDTH], dtype=tl.float32)
    radial = tl.zeros([HELD], dtype=tl.float32)
    for start in range(0, samples, STREAMED):
        sample = start + tl.arange(0, STREAMED)
        known = sample < samples
        at_x = sample[:, None].to(tl.int64) * D + dim[None, :]
        x = tl.load(x_ptr + at_x, mask=known[:, None] & (dim < D)[None, :], other=0.0)
        x = operand(x, False, UPCAST)
        own = tl.load(own_ptr + sample, mask=known, other=-1)
        weight = tl.load(weight_ptr + sample, mask=known, other=0.0)
        target = tl.load(target_ptr + sample, mask=known, other=0.0)
        terms = tl.zeros([HELD, STREAMED], dtype=tl.float32)
        if start < samples:  # always: sum_kernel.py says why
            cosine = tl.dot(unit, tl.trans(x), input_precision="ieee")
            terms = tl.exp2(cosine * scale - offset) * weight[None, :]
            terms = tl.where(row[:, None] == own[None, :], target[None, :], terms)
            radial += tl.sum(terms * cosine, 1)
        gradient = tl.dot(terms.to(x.dtype), x, gradient, input_precision="ieee")
    return gradient, radial


@triton.jit(do_not_specialize=["samples", "count", "unit_key", "moment_key", "first_class"])
def sgd_kernel(
    x_ptr: tl.tensor, unit_ptr: tl.tensor, length_ptr: tl.tensor, own_ptr: tl.tensor, rows_ptr: tl.tensor,
    weight_ptr: tl.tensor, target_ptr: tl.tensor, samples: tl.tensor, count: tl.tensor,
    scale: tl.tensor, offset: tl.tensor, tiny: tl.tensor,
    ids_ptr: tl.tensor, first_class: tl.tensor, unit_key: tl.tensor, moment_key: tl.tensor,
    momentum_ptr: tl.tensor, lr: tl.tensor, momentum: tl.tensor, decay: tl.tensor, MOMENTUM: tl.constexpr,
    DRAWN: tl.constexpr, NAMED: tl.constexpr, LISTED: tl.constexpr, ROUNDED: tl.constexpr, UPCAST: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, HELD: tl.constexpr, STREAMED: tl.constexpr, PARTS: tl.constexpr,
) -> None:  # fmt: skip
    """Move rows of unit, length and momentum in place; grid (blocks of rows,)."""
    row, there, class_id = held_rows(rows_ptr, ids_ptr, count, 0, first_class, LISTED, NAMED, HELD)
    gradient, radial = unit_gradient(
        x_ptr, unit_ptr, own_ptr, weight_ptr, target_ptr, row, there, samples, scale, offset,
        ROUNDED, UPCAST, D, WIDTH, HELD, STREAMED,
    )  # fmt: skip
    length = tl.load(length_ptr + row, mask=there, other=1.0)
    inverse = 1.0 / tl.maximum(length, tiny)
    along = decay * length - radial * inverse
    parts = tl.reshape(gradient * inverse[:, None], [HELD, PARTS, WIDTH // PARTS])
    squares = tl.zeros([HELD], dtype=tl.float32)
    for again in range(2):
        new_length = tl.sqrt(squares)
        shorten = 1.0 / tl.maximum(new_length, tiny)
        for part in range(PARTS):
            d, at, mask = columns(row, there, part, D, WIDTH, PARTS)
            old = tl.load(unit_ptr + at, mask=mask, other=0.0).to(tl.float32)
            step = part_of(parts, part, PARTS) + old * along[:, None]
            if MOMENTUM:
                step += momentum * tl.load(momentum_ptr + at, mask=mask, other=0.0).to(tl.float32)
            centre = old * length[:, None] - lr * step
            if again == 0:
                squares += tl.sum(centre * centre, 1)
            else:
                if MOMENTUM:
                    moment = rounded(step, moment_key, class_id, d, momentum_ptr.dtype.element_ty, DRAWN)
                    tl.store(momentum_ptr + at, moment, mask=mask)
                centre *= shorten[:, None]
                direction = rounded(centre, unit_key, class_id, d, unit_ptr.dtype.element_ty, DRAWN)
                tl.store(unit_ptr + at, direction, mask=mask)
    tl.store(length_ptr + row, tl.sqrt(squares), mask=there)


@triton.jit(do_not_specialize=["samples", "count", "unit_key", "moment_key", "first_class"])
def adamw_kernel(
    x_ptr: tl.tensor, unit_ptr: tl.tensor, length_ptr: tl.tensor, own_ptr: tl.tensor, rows_ptr: tl.tensor,
    weight_ptr: tl.tensor, target_ptr: tl.tensor, samples: tl.tensor, count: tl.tensor,
    scale: tl.tensor, offset: tl.tensor, tiny: tl.tensor,
    ids_ptr: tl.tensor, first_class: tl.tensor, unit_key: tl.tensor, moment_key: tl.tensor,
    first_ptr: tl.tensor, second_ptr: tl.tensor, steps_ptr: tl.tensor,
    lr: tl.tensor, share1: tl.tensor, share2: tl.tensor, rate1: tl.tensor, rate2: tl.tensor, eps: tl.tensor,
    shrink: tl.tensor, DRAWN: tl.constexpr, NAMED: tl.constexpr, LISTED: tl.constexpr, ROUNDED: tl.constexpr,
    UPCAST: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, HELD: tl.constexpr, STREAMED: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:  # fmt: skip
    """Move rows of unit, length and moments in place; grid (blocks of rows,). share 1 - beta, rate -log beta."""
    row, there, class_id = held_rows(rows_ptr, ids_ptr, count, 0, first_class, LISTED, NAMED, HELD)
    gradient, radial = unit_gradient(
        x_ptr, unit_ptr, own_ptr, weight_ptr, target_ptr, row, there, samples, scale, offset,
        ROUNDED, UPCAST, D, WIDTH, HELD, STREAMED,
    )  # fmt: skip
    length = tl.load(length_ptr + row, mask=there, other=1.0)
    inverse = 1.0 / tl.maximum(length, tiny)
    along = radial * inverse
    parts = tl.reshape(gradient * inverse[:, None], [HELD, PARTS, WIDTH // PARTS])
    squares = tl.zeros([HELD], dtype=tl.float32)
    units = tl.zeros([HELD], dtype=tl.float32)
    across = tl.zeros([HELD], dtype=tl.float32)
    moments = tl.zeros([HELD], dtype=tl.float32)
    for part in range(PARTS):
        d, at, mask = columns(row, there, part, D, WIDTH, PARTS)
        old, part_gradient, first = first_moment(
            part_of(parts, part, PARTS), unit_ptr + at, first_ptr + at, mask, along, share1
        )
        squares += tl.sum(part_gradient * part_gradient, 1)
        units += tl.sum(old * old, 1)
        across += tl.sum(old * first, 1)
        moments += tl.sum(first * first, 1)
    steps = tl.load(steps_ptr + row, mask=there, other=0.0) + 1.0
    second = tl.load(second_ptr + row, mask=there, other=0.0)
    second += share2 * (squares / D - second)
    deviation = tl.sqrt(second / one_less_power(steps, rate2)) + eps
    speed = lr / (one_less_power(steps, rate1) * deviation)
    shrunk = length * shrink
    square = shrunk * (shrunk * units - 2.0 * speed * across) + speed * (speed * moments)
    new_length = tl.sqrt(tl.maximum(square, 0.0))
    shorten = 1.0 / tl.maximum(new_length, tiny)
    for part in range(PARTS):
        d, at, mask = columns(row, there, part, D, WIDTH, PARTS)
        old, part_gradient, first = first_moment(
            part_of(parts, part, PARTS), unit_ptr + at, first_ptr + at, mask, along, share1
        )
        moment = rounded(first, moment_key, class_id, d, first_ptr.dtype.element_ty, DRAWN)
        tl.store(first_ptr + at, moment, mask=mask)
        centre = (old * shrunk[:, None] - first * speed[:, None]) * shorten[:, None]
        direction = rounded(centre, unit_key, class_id, d, unit_ptr.dtype.element_ty, DRAWN)
        tl.store(unit_ptr + at, direction, mask=mask)
    tl.store(steps_ptr + row, steps, mask=there)
    tl.store(second_ptr + row, second, mask=there)
    tl.store(length_ptr + row, new_length, mask=there)


@dataclass(frozen=True)
class Pull:
    """A batch's pull on the rows, and how they are written.

    weight (N,): dL/dc_ij / p_ij; target (N,): dL/dc_iy. A length below `tiny` counts as `tiny`. With `keys` (under
    2**31), bfloat16 units and moments are rounded stochastically, by bits drawn from (key, class id, column).
    """

    x: Tensor
    own: Tensor
    weight: Tensor
    target: Tensor
    scale: float
    offset: float
    tiny: float
    keys: tuple[int, int] | None
    first_class: int
    ids: Tensor | None  # (R,) int64 class ids; None: from `first_class` on, in order


def parts_of(tiles: Tiles, dim: int) -> int:
    """Into how many parts of the width a block's rows are cut. Of one the compiler keeps all for the second time."""
    return max(2, tiles.held * width_of(dim) // PART)


def move_sgd(
    state: dict[str, Tensor], pull: Pull, rows: Tensor | None, tiles: Tiles, lr: float, momentum: float, decay: float
) -> None:
    """Move unit, length and, where there is one, momentum in place."""
    moment = state.get("momentum")
    _launch(
        sgd_kernel, state, pull, rows, tiles, state["unit"] if moment is None else moment, lr, momentum, decay,
        MOMENTUM=moment is not None,
    )  # fmt: skip


def move_adamw(
    state: dict[str, Tensor], pull: Pull, rows: Tensor | None, tiles: Tiles,
    lr: float, betas: tuple[float, float], eps: float, decay: float,
) -> None:  # fmt: skip
    """Move unit, length, first (R, D), second (R,) and count (R,) in place."""
    shares = [1 - beta for beta in betas]
    rates = [-math.log(max(beta, LEAST_BETA)) for beta in betas]
    moments = (state["first"], state["second"], state["count"])
    _launch(adamw_kernel, state, pull, rows, tiles, *moments, lr, *shares, *rates, eps, 1 - lr * decay)


def _launch(
    kernel: Any, state: dict[str, Tensor], pull: Pull, rows: Tensor | None, tiles: Tiles, *rule: Any, **fixed: bool
) -> None:
    """Start a kernel; `rule`, `fixed`: the optimiser's own arguments."""
    samples, dim = pull.x.shape
    count = len(state["unit"]) if rows is None else len(rows)
    kernel[(triton.cdiv(count, tiles.held),)](
        pull.x, state["unit"], state["length"], pull.own, pull.own if rows is None else rows, pull.weight, pull.target,
        samples, count, pull.scale * LOG2_E, pull.offset * LOG2_E, pull.tiny,
        pull.own if pull.ids is None else pull.ids, pull.first_class, *(pull.keys or (0, 0)),
        *rule, DRAWN=pull.keys is not None, NAMED=pull.ids is not None, LISTED=rows is not None,
        PARTS=parts_of(tiles, dim), **fixed, **compiled_for(dim, tiles, state["unit"].dtype != pull.x.dtype),
    )  # fmt: skip
