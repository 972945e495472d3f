"""Cases of the fused kernels: stores and queries of every shape and type, and sums in float64 to compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partialkd.centres.row_filter import RowFilter
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps.base import Queries, Sweep, offset_of
from partialkd.centres.sweeps.fused import FusedSweep
from partialkd.centres.sweeps.gemm import GemmSweep
from partialkd.centres.sweeps.products import Products, RoundedOnCUDA

MOMENTUM, DECAY, LR, ADAMW_LR = 0.9, 0.01, 0.3, 0.05


@dataclass(frozen=True)
class Case:
    """One shard and one batch."""

    samples: int = 37
    rows: int = 101
    dim: int = 48
    scale: float = 64.0
    labels: str = "random"
    filter: str = "everything"
    dtype: str = "float32"
    momentum: float = MOMENTUM
    rounded: bool = False  # float32 rows, bfloat16 products


CASES = {
    "tails": Case(),
    "exact": Case(samples=64, rows=128, dim=64),
    "smallest": Case(samples=1, rows=1, dim=16),
    "narrow": Case(samples=3, rows=50, dim=5),
    "wide": Case(samples=9, rows=21, dim=130),
    "512 wide": Case(samples=9, rows=40, dim=512),
    "1024 wide": Case(samples=9, rows=40, dim=1024),
    "many samples": Case(samples=150, rows=40, dim=32),
    "scale 30": Case(scale=30.0),
    "scale 128": Case(scale=128.0),
    "duplicates": Case(labels="duplicates"),
    "all the same": Case(labels="last"),
    "of another shard": Case(labels="elsewhere"),
    "sampled": Case(rows=200, filter="sampled"),
    "sampled duplicates": Case(rows=200, filter="sampled", labels="duplicates"),
    "seen": Case(filter="seen"),
    "sampled and seen": Case(rows=200, filter="both", scale=128.0),
    "few kept": Case(rows=40, filter="unseen", labels="duplicates"),
    "no momentum": Case(momentum=0.0),
    "no rows": Case(rows=0, labels="elsewhere"),
    "bfloat16": Case(dtype="bfloat16", samples=40, rows=200, dim=256),
    "bfloat16 sampled": Case(dtype="bfloat16", rows=200, dim=200, filter="sampled", scale=30.0),
    "rounded": Case(rounded=True, samples=40, rows=150, dim=200),
    "rounded, sampled": Case(rounded=True, rows=200, filter="both", scale=30.0),
}


def build(case: Case, device: torch.device, seed: int) -> tuple[CentreStore, Queries]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)
    n, r = case.samples, case.rows
    store = CentreStore.empty(range(r), r + 10, case.dim, getattr(torch, case.dtype), device)
    store.write(slice(None), draw(r, case.dim).to(device))
    row, owned = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
    if case.labels == "random":
        row, owned = torch.randint(r, (n,), generator=g), torch.rand(n, generator=g) < 0.7
    elif case.labels == "elsewhere":
        owned[:] = False
    else:
        row = torch.arange(n) % min(2, r) if case.labels == "duplicates" else row + r - 1
    row = (row * owned).to(device)
    owned = owned.to(device)
    x = draw(n, case.dim).to(device, store.length.dtype) + 2 * (store.unit[row].to(store.length.dtype) if r else 0)
    seen = {"seen": torch.arange(r) % 3 > 0, "both": torch.arange(r) % 3 > 0, "unseen": torch.zeros(r) > 0}
    known = seen.get(case.filter)
    runs = [range(r // 8, r // 4), range(r // 2, r // 2 + 7)] if case.filter in ("sampled", "both") else None
    rows = RowFilter(r, row[owned], runs, None if known is None else known.to(device))
    return store, Queries(torch.nn.functional.normalize(x), owned, row, rows)


Make = Callable[["Case"], Sweep]


def fused(case: Case) -> FusedSweep:
    return FusedSweep(case.scale, rounded=case.rounded)


class RoundedOnCPU(RoundedOnCUDA):
    """The products of CUDA, of which the CPU knows none with float32 results."""

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        torch.mm(a.float(), b.float(), out=out)

    def add(self, a: Tensor, b: Tensor, total: Tensor) -> None:
        total.addmm_(a.float(), b.float())


def gemm(case: Case, chunk_rows: int | None = 60, capture: Any = None) -> GemmSweep:
    products = RoundedOnCPU() if case.rounded or case.dtype == "bfloat16" else Products()
    if torch.cuda.is_available():
        products = RoundedOnCUDA() if products.copied else products
    return GemmSweep(case.scale, chunk_rows, products, capture)


def error(got: Tensor, want: Tensor) -> float:
    """Of the worst row, relative to its norm; of a row that should be zero, absolute. Infinite for NaN."""
    if not want.numel():
        return float(got.shape != want.shape)
    rows, wanted = got.double().reshape(len(want), -1), want.reshape(len(want), -1)
    norm = wanted.norm(dim=1)
    wrong = (rows - wanted).norm(dim=1) / torch.where(norm > 0, norm, 1)
    return float(wrong.nan_to_num(torch.inf).amax())


def terms_of(unit: Tensor, queries: Queries, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """-> exp(scale * cosine - offset) (N, R) where it counts, cosines (N, R), own (N, R) bool; float64."""
    cosine = queries.embeddings.double() @ unit.T
    own = torch.zeros_like(cosine, dtype=torch.bool)
    sample = queries.owned.nonzero().squeeze(1)
    own[sample, queries.row[sample]] = True
    kept = queries.filter.keep(0, len(unit))
    return (scale * cosine - offset_of(scale)).exp() * (kept & ~own), cosine, own


def loop_bounds() -> None:
    """Triton 3.6's interpreter makes a loop's bound of an array that holds one number; NumPy 2.4 refuses to."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched
