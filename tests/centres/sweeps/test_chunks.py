"""How many rows are multiplied with at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers import kernel_cases
from helpers.kernel_cases import Case
from partialkd.centres.sweeps.chunked import GRADIENTS_CHUNK, SUMS_CHUNK, ChunkedSweep
from partialkd.centres.sweeps.chunks import ChunkSize, cache_of
from partialkd.centres.sweeps.products import OneDNNProducts, Products, RoundedOnCUDA

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MB = 1 << 20


@pytest.mark.parametrize(
    ("cache", "samples", "dim", "copied", "sums", "gradients"),
    [
        (50 * MB, 1024, 512, 2, 3584, 2304),
        (50 * MB, 1024, 512, 0, 4096, 2560),
        (50 * MB, 64, 512, 2, 18432, 4608),
        (50 * MB, 64, 1024, 2, 10752, 2304),
        (50 * MB, 8192, 512, 2, 512, 256),
        (50 * MB, 100_000, 512, 2, 256, 256),  # at least
        (4 * MB, 256, 512, 2, 768, 256),
    ],
)
def test_on_cuda_logits_and_rows_fill_half_of_the_cache(
    cache: int, samples: int, dim: int, copied: int, sums: int, gradients: int
) -> None:
    logits, row = samples * (4 + copied), dim * (copied or 4)
    # In the second sweep a row's gradient and a copy of the optimiser's too, in float32.
    for size, rows, a_row in ((SUMS_CHUNK, sums, logits + row), (GRADIENTS_CHUNK, gradients, logits + row + 8 * dim)):
        assert size.rows(cache, samples, dim, 4, copied) == rows
        assert rows == 256 or cache / 2 - 256 * a_row < rows * a_row <= cache / 2


@pytest.mark.parametrize(
    ("samples", "dim", "rows"),
    [(256, 512, 16384), (1000, 512, 4194), (100_000, 512, 256), (64, 512, 32768), (64, 256, 65536)],
)
def test_elsewhere_they_are_as_many_as_asked(samples: int, dim: int, rows: int) -> None:
    """But no more than four numbers of rows a logit."""
    assert ChunkSize(1 << 22, copies=2).rows(0, samples, dim, 4, 0) == rows


@pytest.mark.parametrize(("device", "known", "cache"), [(CPU, 50 * MB, 0), (CUDA, 50 * MB, 50 * MB), (CUDA, 0, 0)])
def test_the_cache_is_the_devices(
    device: torch.device, known: int, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 is what some drivers say."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=known))
    assert cache_of(device) == cache


@pytest.mark.parametrize(
    ("dtype", "products", "number"),
    [("float32", Products(), 4), ("float32", OneDNNProducts(), 4), ("float64", Products(), 8)],
)
def test_a_logit_counts_with_its_copy(
    dtype: str, products: Products, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def rows(*arguments: Any) -> int:
        asked.append(arguments)
        return 50

    monkeypatch.setattr(ChunkSize, "rows", rows)
    store, queries = kernel_cases.build(Case(dtype=dtype), CPU, 1)
    sweep = ChunkedSweep(64.0, None, products)
    sweep.sums(store, queries)
    weight = torch.zeros_like(queries.embeddings[:, 0])
    pieces = [piece.rows for piece in sweep.row_gradients(store, [(queries, weight, weight)])]
    assert asked == [(size, 0, 37, 48, number, products.copied) for size in (SUMS_CHUNK, GRADIENTS_CHUNK)]
    assert pieces == [slice(0, 50), slice(50, 100), slice(100, 101)]
    assert RoundedOnCUDA.copied == torch.bfloat16.itemsize
