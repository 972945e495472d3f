"""Move rows by a gradient that is given, by one Triton kernel: what row_optimizers does with a few dozen of torch's.

unit (R, D) float32 or bfloat16, length (R,) float32, moments (R, D) or (R,); gradient (r, D) float32 dL/du; a program
takes ROWS rows whole, so that all they have in common stays in registers. bfloat16 rows and moments are rounded to
nearest, or by random bits of (key, class id, column), as in sweeps/row_kernels.py. Importing this imports Triton.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl
from torch import Tensor

from partialkd.centres.sweeps.row_kernels import LEAST_BETA, held_rows, one_less_power, rounded
from partialkd.centres.sweeps.tiles import width_of

if TYPE_CHECKING:
    from partialkd.centres.store import CentreStore

ROWS, WARPS = 4, 4  # of a program: 16 numbers of each matrix per thread at D = 512


@triton.jit
def write_centre(
    unit_ptr: tl.tensor, length_ptr: tl.tensor, at: tl.tensor, mask: tl.tensor, row: tl.tensor, there: tl.tensor,
    centre: tl.tensor, tiny: tl.tensor, key: tl.tensor, class_id: tl.tensor, dim: tl.tensor, DRAWN: tl.constexpr,
) -> None:  # fmt: skip
    """Split centres (n, WIDTH) into directions and lengths."""
    length = tl.sqrt(tl.sum(centre * centre, 1))
    direction = centre * (1.0 / tl.maximum(length, tiny))[:, None]
    direction = rounded(direction, key, class_id, dim, unit_ptr.dtype.element_ty, DRAWN)
    tl.store(unit_ptr + at, direction, mask=mask)
    tl.store(length_ptr + row, length, mask=there)


@triton.jit
def read_rows(
    gradient_ptr: tl.tensor, rows_ptr: tl.tensor, unit_ptr: tl.tensor, length_ptr: tl.tensor, ids_ptr: tl.tensor,
    count: tl.tensor, first_row: tl.tensor, first_class: tl.tensor,
    NAMED: tl.constexpr, LISTED: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, HELD: tl.constexpr,
) -> tuple[tl.tensor, ...]:  # fmt: skip
    """This program's rows: where they lie, (HELD, WIDTH) directions and gradients, (HELD,) lengths."""
    line = (tl.program_id(0) * HELD + tl.arange(0, HELD)).to(tl.int64)
    row, there, class_id = held_rows(rows_ptr, ids_ptr, count, first_row, first_class, LISTED, NAMED, HELD)
    dim = tl.arange(0, WIDTH)
    mask = there[:, None] & (dim < D)[None, :]
    at = row[:, None].to(tl.int64) * D + dim[None, :]
    unit = tl.load(unit_ptr + at, mask=mask, other=0.0).to(tl.float32)
    gradient = tl.load(gradient_ptr + line[:, None] * D + dim[None, :], mask=mask, other=0.0)
    length = tl.load(length_ptr + row, mask=there, other=1.0)
    return row, there, class_id, dim, mask, at, unit, gradient, length


@triton.jit(do_not_specialize=["count", "first_row", "first_class", "unit_key", "moment_key"])
def sgd_update(
    gradient_ptr: tl.tensor, rows_ptr: tl.tensor, unit_ptr: tl.tensor, length_ptr: tl.tensor, ids_ptr: tl.tensor,
    count: tl.tensor, first_row: tl.tensor, first_class: tl.tensor,
    unit_key: tl.tensor, moment_key: tl.tensor, tiny: tl.tensor, lr: tl.tensor,
    momentum_ptr: tl.tensor, momentum: tl.tensor, decay: tl.tensor, MOMENTUM: tl.constexpr,
    DRAWN: tl.constexpr, NAMED: tl.constexpr, LISTED: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    HELD: tl.constexpr,
) -> None:  # fmt: skip
    """Move rows as row_optimizers.RowSGD; grid (blocks of rows,)."""
    row, there, class_id, dim, mask, at, unit, step, length = read_rows(
        gradient_ptr, rows_ptr, unit_ptr, length_ptr, ids_ptr, count, first_row, first_class,
        NAMED, LISTED, D, WIDTH, HELD,
    )  # fmt: skip
    inverse = 1.0 / tl.maximum(length, tiny)
    along = decay * length - tl.sum(step * unit, 1) * inverse
    step = step * inverse[:, None] + unit * along[:, None]
    if MOMENTUM:
        step += momentum * tl.load(momentum_ptr + at, mask=mask, other=0.0).to(tl.float32)
        moment = rounded(step, moment_key, class_id, dim, momentum_ptr.dtype.element_ty, DRAWN)
        tl.store(momentum_ptr + at, moment, mask=mask)
    centre = unit * length[:, None] - lr * step
    write_centre(unit_ptr, length_ptr, at, mask, row, there, centre, tiny, unit_key, class_id, dim, DRAWN)


@triton.jit(do_not_specialize=["count", "first_row", "first_class", "unit_key", "moment_key", "second_key"])
def adamw_update(
    gradient_ptr: tl.tensor, rows_ptr: tl.tensor, unit_ptr: tl.tensor, length_ptr: tl.tensor, ids_ptr: tl.tensor,
    count: tl.tensor, first_row: tl.tensor, first_class: tl.tensor,
    unit_key: tl.tensor, moment_key: tl.tensor, second_key: tl.tensor, tiny: tl.tensor, lr: tl.tensor,
    first_ptr: tl.tensor, second_ptr: tl.tensor, steps_ptr: tl.tensor, share1: tl.tensor, share2: tl.tensor,
    rate1: tl.tensor, rate2: tl.tensor, eps: tl.tensor, shrink: tl.tensor, BY_ROW: tl.constexpr,
    DRAWN: tl.constexpr, NAMED: tl.constexpr, LISTED: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    HELD: tl.constexpr,
) -> None:  # fmt: skip
    """Move rows as row_optimizers.RowAdamW; grid (blocks of rows,). share 1 - beta, rate -log beta."""
    row, there, class_id, dim, mask, at, unit, gradient, length = read_rows(
        gradient_ptr, rows_ptr, unit_ptr, length_ptr, ids_ptr, count, first_row, first_class,
        NAMED, LISTED, D, WIDTH, HELD,
    )  # fmt: skip
    radial = tl.sum(gradient * unit, 1)
    gradient = (gradient - radial[:, None] * unit) * (1.0 / tl.maximum(length, tiny))[:, None]
    first = tl.load(first_ptr + at, mask=mask, other=0.0).to(tl.float32)
    first += share1 * (gradient - first)
    tl.store(first_ptr + at, rounded(first, moment_key, class_id, dim, first_ptr.dtype.element_ty, DRAWN), mask=mask)
    steps = tl.load(steps_ptr + row, mask=there, other=0.0) + 1.0
    tl.store(steps_ptr + row, steps, mask=there)
    correction = one_less_power(steps, rate2)
    if BY_ROW:
        second = tl.load(second_ptr + row, mask=there, other=0.0)
        second += share2 * (tl.sum(gradient * gradient, 1) / D - second)
        tl.store(second_ptr + row, second, mask=there)
        deviation = (tl.sqrt(second / correction) + eps)[:, None]
    else:
        second = tl.load(second_ptr + at, mask=mask, other=0.0).to(tl.float32)
        second += share2 * (gradient * gradient - second)
        moment = rounded(second, second_key, class_id, dim, second_ptr.dtype.element_ty, DRAWN)
        tl.store(second_ptr + at, moment, mask=mask)
        deviation = tl.sqrt(second / correction[:, None]) + eps
    mean = first / one_less_power(steps, rate1)[:, None]
    centre = unit * (length * shrink)[:, None] - lr * mean / deviation
    write_centre(unit_ptr, length_ptr, at, mask, row, there, centre, tiny, unit_key, class_id, dim, DRAWN)


def move_sgd(
    store: CentreStore, rows: slice | Tensor, gradient: Tensor, keys: tuple[int, ...] | None, tiny: float,
    lr: float, momentum: float, decay: float,
) -> None:  # fmt: skip
    """Move unit, length and, where there is one, momentum in place."""
    moment = store.moments.get("momentum")
    rule = (store.unit if moment is None else moment, momentum, decay)
    _launch(
        sgd_update,
        store,
        rows,
        gradient,
        (keys or (0, 0))[:2],
        keys is not None,
        tiny,
        lr,
        *rule,
        MOMENTUM=moment is not None,
    )


def move_adamw(
    store: CentreStore, rows: slice | Tensor, gradient: Tensor, keys: tuple[int, ...] | None, tiny: float,
    lr: float, betas: tuple[float, float], eps: float, decay: float,
) -> None:  # fmt: skip
    """Move unit, length, first (R, D), second (R, D) or (R,) and count (R,) in place."""
    moments = store.moments["first"], store.moments["second"], store.moments["count"]
    rates = [-math.log(max(beta, LEAST_BETA)) for beta in betas]
    rule = (*moments, *(1 - beta for beta in betas), *rates, eps, 1 - lr * decay)
    _launch(
        adamw_update,
        store,
        rows,
        gradient,
        keys or (0, 0, 0),
        keys is not None,
        tiny,
        lr,
        *rule,
        BY_ROW=store.moments["second"].dim() == 1,
    )


def _launch(
    kernel: Any, store: CentreStore, rows: slice | Tensor, gradient: Tensor, keys: tuple[int, ...], drawn: bool,
    tiny: float, lr: float, *rule: Any, **fixed: bool,
) -> None:  # fmt: skip
    """Start a kernel; rows: a slice, or a list (r,), -1 for none; `rule`, `fixed`: the optimiser's own arguments."""
    count, first = len(gradient), 0 if isinstance(rows, Tensor) else rows.indices(len(store.unit))[0]
    listed = isinstance(rows, Tensor)
    kernel[(triton.cdiv(count, ROWS),)](
        gradient, rows if listed else store.unit, store.unit, store.length,
        store.unit if store.ids is None else store.ids, count, first,
        store.shard.start, *keys, tiny, lr, *rule, DRAWN=drawn,
        NAMED=store.ids is not None, LISTED=listed, D=store.dim, WIDTH=width_of(store.dim), HELD=ROWS,
        num_warps=WARPS, **fixed,
    )  # fmt: skip
