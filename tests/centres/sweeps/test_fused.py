"""Which stores, products and optimisers the fused sweep takes by kernels, and which by chunks."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from helpers import kernel_cases
from helpers.kernel_cases import Case
from partialkd.centres.row_optimizers import RowAdamW, RowSGD
from partialkd.centres.sweeps.choose import make_sweep
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.fastest_products import make_products
from partialkd.centres.sweeps.fused import KERNEL_TYPES, FusedSweep
from partialkd.centres.sweeps.listed_rows import kept_rows
from partialkd.centres.sweeps.products import Products
from partialkd.config import CentresConfig
from partialkd.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["everything", "sampled", "seen", "both", "unseen"])
def test_listed_rows_are_those_the_filter_keeps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partialkd.centres.sweeps.listed_rows.LISTED_AT_ONCE", 7)
    _, queries = kernel_cases.build(Case(rows=200, filter=name), CPU, 1)
    lists, kept = list(kept_rows(queries.filter)), queries.filter.keep(0, 200)
    assert (lists == [None]) == (name == "everything")
    if name != "everything":
        assert {one.dtype for one in lists} == {torch.int32}
        assert max(len(one) for one in lists[:-1]) == 7
        listed = torch.cat(lists)
        assert torch.equal(listed[listed >= 0].sort().values.long(), kept.nonzero().squeeze(1))


def test_stores_without_a_kernel_take_the_chunked_path() -> None:
    case = Case(dtype="float64")
    store, queries = kernel_cases.build(case, CPU, 1)
    assert "triton" not in sys.modules or find_spec("triton")
    for got, wanted in zip(FusedSweep(64.0).sums(store, queries), ChunkedSweep(64.0).sums(store, queries), strict=True):
        assert torch.equal(got, wanted)


def test_exact_products_of_rounded_rows_take_the_chunked_path() -> None:
    """On the CPU the kernels would not even load without Triton's interpreter."""
    store, queries = kernel_cases.build(Case(dtype="bfloat16"), CPU, 1)
    fused = FusedSweep(64.0, None, make_products("fp32", CPU), KERNEL_TYPES["fp32"])
    chunked = ChunkedSweep(64.0, None, make_products("fp32", CPU))
    for got, wanted in zip(fused.sums(store, queries), chunked.sums(store, queries), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("products", "rounded"), [("auto", True), ("bf16", True), ("fp32", False)], ids=lambda value: str(value)
)
def test_float32_rows_are_multiplied_as_the_configuration_says(products: Any, rounded: bool) -> None:
    cuda = torch.device("cuda")
    sweep = make_sweep(CentresConfig(backend="fused", products=products), 64.0, cuda)
    assert isinstance(sweep, FusedSweep)
    store, _ = kernel_cases.build(Case(), CPU, 1)
    assert sweep.takes(store)
    assert (sweep.multiplied(store) == torch.bfloat16) == rounded
    assert type(sweep.after_kernels(store).products) is type(make_products("bf16" if rounded else "fp32", CPU))


def test_other_optimisers_take_the_chunked_path() -> None:
    moved = []
    for sweep in (FusedSweep(64.0), ChunkedSweep(64.0)):
        store, queries = kernel_cases.build(Case(), CPU, 1)
        batch = (queries, torch.full((37,), 1e-30), torch.full((37,), -0.1))
        sweep.move(store, [batch], RowAdamW(store, (0.9, 0.999), 1e-8, 0.1), 0.1)
        moved.append(store.unit)
    assert torch.equal(*moved)


class Untouched(Products):
    """Stands for the bfloat16 products of CUDA, which must not be used."""

    def multiply(self, *_: Any) -> None:
        raise AssertionError

    def add(self, *_: Any) -> None:
        raise AssertionError


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "fp32"), ("bfloat16", "bf16")])
def test_rows_move_in_the_precision_of_their_sums(dtype: str, precision: Any) -> None:
    """Sums of these stores come from the kernels; AdamW and accumulated steps have none."""
    products = make_products(precision, CPU)
    fused = FusedSweep(64.0, 16, Untouched())
    for optimizer, count in ((RowAdamW, 1), (RowAdamW, 2), (RowSGD, 2)):
        moved = []
        for sweep in (fused, ChunkedSweep(64.0, 16, products)):
            store, queries = kernel_cases.build(Case(dtype=dtype), CPU, 1)
            batch = (queries, torch.full((37,), 1e-30), torch.full((37,), -0.1))
            rows = RowSGD(store, 0.9, 0.1) if optimizer is RowSGD else RowAdamW(store, (0.9, 0.999), 1e-8, 0.1)
            sweep.move(store, [batch] * count, rows, 0.1)
            moved.append(store.unit)
        assert torch.equal(*moved)
    chunked = fused.after_kernels(store)
    assert type(chunked.products) is type(products)
    assert chunked.chunk_rows == 16


def test_fused_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r'centres.backend: must be "chunked" or "auto" .* got "fused" on cpu'):
        make_sweep(CentresConfig(backend="fused"), 64.0, CPU)


def test_auto_is_chunked_until_measured() -> None:
    assert type(make_sweep(CentresConfig(backend="auto"), 64.0, CPU)) is ChunkedSweep
