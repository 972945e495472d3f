"""How many rows are multiplied with at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import kernel_cases
import pytest
import torch
from kernel_cases import Case

from partialkd.centres import contrast
from partialkd.centres.chunks import rows_a_chunk
from partialkd.centres.contrast import GRADIENTS_CHUNK, SUMS_CHUNK, ChunkedSweep
from partialkd.centres.products import Products, RoundedOnCPU, RoundedOnCUDA

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MB = 1 << 20


def on_a_device_with(cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=cache))


@pytest.mark.parametrize(
    ("cache", "samples", "bytes_a_logit", "rows"),
    [
        (50 * MB, 1024, 6, 4096),
        (50 * MB, 1024, 4, 6400),
        (50 * MB, 64, 6, 68096),
        (50 * MB, 8192, 6, 512),
        (50 * MB, 100_000, 6, 256),  # at least
        (4 * MB, 256, 6, 1280),
        (4 * MB, 2048, 6, 256),
    ],
)
def test_on_cuda_logits_fill_half_of_the_cache(
    cache: int, samples: int, bytes_a_logit: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_device_with(cache, monkeypatch)
    assert rows_a_chunk(CUDA, samples, bytes_a_logit, 1 << 22) == rows
    assert rows == 256 or cache / 2 - 256 * samples * bytes_a_logit < rows * samples * bytes_a_logit <= cache / 2


@pytest.mark.parametrize(("samples", "rows"), [(256, 16384), (1000, 4194), (100_000, 256)])
def test_elsewhere_they_are_as_many_as_asked(samples: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows_a_chunk(CPU, samples, 4, 1 << 22) == rows
    on_a_device_with(0, monkeypatch)  # what some drivers say
    assert rows_a_chunk(CUDA, samples, 4, 1 << 22) == rows


@pytest.mark.parametrize(
    ("dtype", "products", "bytes_a_logit"),
    [("float32", Products(), 4), ("float32", RoundedOnCPU(), 4), ("float64", Products(), 8)],
)
def test_a_logit_counts_with_its_copy(
    dtype: str, products: Products, bytes_a_logit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(contrast, "rows_a_chunk", lambda *arguments: asked.append(arguments) or 50)
    store, queries = kernel_cases.build(Case(dtype=dtype), CPU, 1)
    sweep = ChunkedSweep(64.0, None, products)
    sweep.sums(store, queries)
    weight = torch.zeros_like(queries.embeddings[:, 0])
    pieces = [rows for rows, _ in sweep.row_gradients(store, [(queries, weight, weight)])]
    assert asked == [(CPU, 37, bytes_a_logit, SUMS_CHUNK), (CPU, 37, bytes_a_logit, GRADIENTS_CHUNK)]
    assert pieces == [slice(0, 50), slice(50, 100), slice(100, 101)]
    assert products.copied + queries.embeddings.element_size() == bytes_a_logit
    assert RoundedOnCUDA.copied == torch.bfloat16.itemsize
