"""Multiply the matrices of the sweep: float32 numbers as they are, or rounded to bfloat16 (centres.products).

Sums and results are float32 either way, and what is in neither precision (float64) is multiplied as it is. Rounding
moves a cosine by about 2^-9 / sqrt(D), which exp turns into an error of scale times as much in a term; errors of many
terms are independent and average out. Target cosines are not products of rounded numbers; Z sums terms of rounded
cosines, in float32.

On the CPU torch has a setting by which oneDNN multiplies float32 numbers and may round them as it reads. What it does
there depends on the processor, so the running one is asked with a small product (`effect_of_setting`):
- it rounds (matrix units for bfloat16, AMX): that is what "bf16" means;
- it is another float32 kernel, exact (AVX-512 without AMX): no rounding and no gain from "bf16", which is said once;
  but where that kernel is faster than torch's own it is used for exact products (fastest_products.py);
- nothing changes (AVX2): "bf16" gains nothing, which is said once.
The setting is the whole process's and is set back after every product: nothing else of ours multiplies meanwhile.

On CUDA rounded operands are copies in bfloat16, of rows only where the store is another type.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from partialkd.centres.store import CentreStore

_log = logging.getLogger(__name__)

Effect = Literal["rounds", "another kernel", "nothing"]


class Products:
    """Products in the precision of the operands, by torch's own choice of kernel."""

    copied = 0  # bytes of the copy that `operand` makes of a number

    def rows(self, store: CentreStore, rows: slice | Tensor) -> Tensor:
        """Unit centres (n, D) of these rows, as an operand."""
        return store.directions(rows)

    def operand(self, x: Tensor) -> Tensor:
        """Turn x into what `multiply` and `add` take."""
        return x

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """out = a @ b"""
        torch.mm(a, b, out=out)

    def add(self, a: Tensor, b: Tensor, total: Tensor) -> None:
        """total += a @ b"""
        total.addmm_(a, b)


class OneDNNProducts(Products):
    """Products of float32 numbers by oneDNN, on the CPU; whether it rounds them says `effect_of_setting`."""

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        with _allowed_to_round():
            super().multiply(a, b, out)

    def add(self, a: Tensor, b: Tensor, total: Tensor) -> None:
        with _allowed_to_round():
            super().add(a, b, total)


class RoundedOnCUDA(Products):
    """Products of bfloat16 copies with float32 results."""

    copied = 2

    def rows(self, store: CentreStore, rows: slice | Tensor) -> Tensor:
        return store.unit[rows] if store.unit.dtype == torch.bfloat16 else self.operand(store.directions(rows))

    def operand(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16)

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        torch.mm(a, b, out_dtype=torch.float32, out=out)

    def add(self, a: Tensor, b: Tensor, total: Tensor) -> None:
        if total.device.type != "cuda" or adds_in_float32(total.device):
            torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
        else:
            total += torch.mm(a, b, out_dtype=torch.float32)


def rounds(choice: Literal["auto", "fp32", "bf16"], cuda: bool) -> bool:
    """Whether centres.products asks for bfloat16 there."""
    return choice == "bf16" or (choice == "auto" and cuda)


@cache
def adds_in_float32(device: torch.device) -> bool:
    """Find out, by making one, whether a product of bfloat16 numbers adds to a float32 matrix in place there."""
    a, b = (torch.eye(64, dtype=torch.bfloat16, device=device) * factor for factor in (3.0, 0.5))
    total = torch.ones(64, 64, device=device)
    wanted = total + torch.mm(a, b, out_dtype=torch.float32)
    try:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    except RuntimeError as error:
        _log.info("products are added to sums by an operation of their own: %s", str(error).splitlines()[0])
        return False
    return torch.equal(total, wanted)


@cache
def effect_of_setting() -> Effect:
    """Find out, by making one, what oneDNN's setting does to a float32 product on the processor that runs this."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    own, other = torch.empty(2, 256, 256)
    Products().multiply(a, b, own)
    OneDNNProducts().multiply(a, b, other)
    exact, rounded = a.double() @ b.double(), a.bfloat16().double() @ b.bfloat16().double()
    if (other - rounded).norm() < (other - exact).norm():
        return "rounds"
    return "nothing" if torch.equal(own, other) else "another kernel"


@contextmanager
def _allowed_to_round() -> Iterator[None]:
    """Within, oneDNN takes float32 products, and may round their operands."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # set when the module is loaded
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
