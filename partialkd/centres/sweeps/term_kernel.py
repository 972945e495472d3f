"""Make of a chunk's logits what its second product takes, by one Triton kernel.

Logits (r, N) float32, scale * <unit row, x>, become p = exp(logit - offset) in the type of products, zero at rows that
do not take part and at each sample's own class; the sums of p over the rows are added to `partition`, which has a line
for every block of LINES rows that one program adds to, chunk after chunk: no atomics, the same sums in every run. For
the movement of rows they become p * weight instead, with the target's gradient at the own class, and nothing is summed.

Rows of int8 numbers are multiplied as such, exact in bfloat16; their scales are applied here, to the logits before and
to p after. Importing this module imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from partialkd.centres.sweeps.sum_kernel import LOG2_E

LINES, COLUMNS, WARPS = 32, 128, 4  # of a program: 32 numbers per thread


@triton.jit(do_not_specialize=["samples", "count", "first_row"])
def terms_kernel(
    logits_ptr: tl.tensor, terms_ptr: tl.tensor, own_ptr: tl.tensor, rows_ptr: tl.tensor, scale_ptr: tl.tensor,
    weight_ptr: tl.tensor, target_ptr: tl.tensor, partition_ptr: tl.tensor,
    samples: tl.tensor, count: tl.tensor, first_row: tl.tensor, to_base_2: tl.tensor, offset: tl.tensor,
    LISTED: tl.constexpr, SCALED: tl.constexpr, MOVING: tl.constexpr, LINES: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Write terms (r, N); grid (blocks of rows, blocks of samples)."""
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    known, there = column < samples, line < count
    at = line[:, None].to(tl.int64) * samples + column[None, :]
    mask = there[:, None] & known[None, :]
    row = line + first_row
    if LISTED:
        row = tl.load(rows_ptr + line, mask=there, other=-1)
        there = row >= 0
    logits = tl.load(logits_ptr + at, mask=mask, other=0.0)
    if SCALED:
        scale = tl.load(scale_ptr + row, mask=there, other=0.0)[:, None]
        logits *= scale
    terms = tl.exp2(logits * to_base_2 - offset)
    own = row[:, None] == tl.load(own_ptr + column, mask=known, other=-1)[None, :]
    if MOVING:
        weight = tl.load(weight_ptr + column, mask=known, other=0.0)
        target = tl.load(target_ptr + column, mask=known, other=0.0)
        terms = tl.where(own, target[None, :], terms * weight[None, :])
        terms = tl.where(there[:, None], terms, 0.0)
    else:
        terms = tl.where(there[:, None] & known[None, :] & (own == 0), terms, 0.0)
        to_sum = partition_ptr + tl.program_id(0).to(tl.int64) * samples + column
        before = tl.load(to_sum, mask=known, other=0.0)
        tl.store(to_sum, before + tl.sum(terms, 0), mask=known)
        if SCALED:
            terms *= scale
    tl.store(terms_ptr + at, terms.to(terms_ptr.dtype.element_ty), mask=mask)


def blocks(rows: int) -> int:
    """Lines of `partition` for chunks of so many rows."""
    return triton.cdiv(rows, LINES)


def sum_terms(
    logits: Tensor, terms: Tensor, own: Tensor, rows: Tensor | int, scale: Tensor | None, offset: float, sums: Tensor
) -> None:
    """Turn logits (r, N) into terms (r, N), and add their sums to `sums` (blocks, N).

    own (N,) int32 rows of the store, -1: none; rows (r,) int32, -1: none, or the first of r that lie together.
    """
    _launch(logits, terms, own, rows, scale, offset, sums, sums, sums, moving=False)


def weigh_terms(
    logits: Tensor, terms: Tensor, own: Tensor, rows: Tensor | int, offset: float, weight: Tensor, target: Tensor
) -> None:
    """Turn logits (r, N) into terms * weight (r, N), target where the row is the sample's own."""
    _launch(logits, terms, own, rows, None, offset, weight, target, weight, moving=True)


def _launch(
    logits: Tensor, terms: Tensor, own: Tensor, rows: Tensor | int, scale: Tensor | None, offset: float,
    weight: Tensor, target: Tensor, sums: Tensor, moving: bool,
) -> None:  # fmt: skip
    count, samples = logits.shape
    listed = isinstance(rows, Tensor)
    terms_kernel[(triton.cdiv(count, LINES), triton.cdiv(samples, COLUMNS))](
        logits, terms, own, rows if listed else own, logits if scale is None else scale, weight, target, sums,
        samples, count, 0 if listed else rows, LOG2_E, offset * LOG2_E,
        LISTED=listed, SCALED=scale is not None, MOVING=moving, LINES=LINES, COLUMNS=COLUMNS, num_warps=WARPS,
    )  # fmt: skip
