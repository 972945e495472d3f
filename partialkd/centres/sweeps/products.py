"""Matrix products of the sweep: of float32 numbers as they are, or of numbers rounded to bfloat16 (centres.products).

Sums and results are float32 either way, and what is in neither precision (float64) is multiplied as it is. Rounding
moves a cosine by about 2^-9 / sqrt(D), which exp turns into an error of scale times as much in a term; errors of many
terms are independent and average out. Target cosines are not products of rounded numbers; Z sums terms of rounded
cosines, in float32.

On the CPU oneDNN rounds as it reads. It is told so by a setting of the whole process, set back after every product:
nothing else of ours multiplies meanwhile. Processors without bfloat16 products multiply in float32. On CUDA the
operands are copies in bfloat16, of rows only where the store is another type (never run on a GPU yet).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from partialkd.centres.store import CentreStore


class Products:
    """In the precision of the operands."""

    copied = 0  # bytes of the copy that `operand` makes of a number

    def rows(self, store: CentreStore, rows: slice | Tensor) -> Tensor:
        """Unit centres (n, D) of these rows, as an operand."""
        return store.directions(rows)

    def operand(self, x: Tensor) -> Tensor:
        """x as `multiply` and `add` take it."""
        return x

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """out = a @ b"""
        torch.mm(a, b, out=out)

    def add(self, a: Tensor, b: Tensor, total: Tensor) -> None:
        """total += a @ b"""
        total.addmm_(a, b)


class RoundedOnCPU(Products):
    """float32 operands rounded to bfloat16 inside oneDNN."""

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        with _rounding():
            super().multiply(a, b, out)

    def add(self, a: Tensor, b: Tensor, total: Tensor) -> None:
        with _rounding():
            super().add(a, b, total)


class RoundedOnCUDA(Products):
    """bfloat16 operands, float32 results."""

    copied = 2

    def rows(self, store: CentreStore, rows: slice | Tensor) -> Tensor:
        return store.unit[rows] if store.unit.dtype == torch.bfloat16 else self.operand(store.directions(rows))

    def operand(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16)

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        torch.mm(a, b, out_dtype=torch.float32, out=out)

    def add(self, a: Tensor, b: Tensor, total: Tensor) -> None:
        total += torch.mm(a, b, out_dtype=torch.float32)


def rounds(choice: Literal["auto", "fp32", "bf16"], cuda: bool) -> bool:
    """Whether centres.products means bfloat16 there."""
    return choice == "bf16" or (choice == "auto" and cuda)


def make_products(
    choice: Literal["auto", "fp32", "bf16"], device: torch.device, dtype: torch.dtype = torch.float32
) -> Products:
    """What centres.products names, for embeddings of this type."""
    cuda = device.type == "cuda"
    if dtype != torch.float32 or not rounds(choice, cuda):
        return Products()
    return RoundedOnCUDA() if cuda else RoundedOnCPU()


@contextmanager
def _rounding() -> Iterator[None]:
    """Within, oneDNN rounds the operands of float32 products."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # set when the module is loaded
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
