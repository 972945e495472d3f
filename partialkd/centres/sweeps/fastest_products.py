"""Choose how the running machine multiplies: rounded or exact, and for exact float32 on the CPU the faster kernel.

torch's own float32 product is the math library that it was built with, which on some processors is far from the fastest
(MKL on AMD's: half as fast as oneDNN's kernel). Where oneDNN has another exact one, the two are measured the first time
that a shape comes up, on at most MEASURED_ROWS rows of the real operands. The other is used if it is at least
a tenth faster and its result agrees to TOLERANCE; that is logged, and kept in the tuner's file, so that a
run that goes on multiplies as before. Not measured, torch's own taken: products of under SMALL multiply-adds, and all
with torch's deterministic algorithms. A shape: m, k and n of (m, k) @ (k, n), each as its power of two, whether the
left operand lies transposed, threads, processor and version of torch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from partialkd.centres.sweeps.products import OneDNNProducts, Products, RoundedOnCUDA, effect_of_setting, rounds
from partialkd.centres.sweeps.tuner import Tuner

SMALL = 1 << 24  # multiply-adds
MEASURED_ROWS = 1 << 12
WORTH_IT = 0.9  # of the time of torch's own
TOLERANCE = 1e-5  # relative; rounding to bfloat16 is off by 2e-3
Operation = Literal["multiply", "add"]

_log = logging.getLogger(__name__)


def make_products(
    choice: Literal["auto", "fp32", "bf16"], device: torch.device, dtype: torch.dtype = torch.float32
) -> Products:
    """Make the products that centres.products names, for embeddings of this type."""
    if dtype != torch.float32:
        return Products()
    if device.type == "cuda":
        return RoundedOnCUDA() if rounds(choice, cuda=True) else Products()
    effect = effect_of_setting()
    if rounds(choice, cuda=False):
        if effect == "rounds":
            return OneDNNProducts()
        _say_that_nothing_is_rounded()
    return FastestProducts(OneDNNProducts()) if effect == "another kernel" else Products()


@cache
def _say_that_nothing_is_rounded() -> None:
    """Log it once in a process."""
    _log.info(
        'centres.products = "bf16" gains nothing on this processor, which has no bfloat16 products with float32 '
        "results: it multiplies in float32"
    )


def seconds_on_cpu(run: Callable[[], object]) -> float:
    """Time the shortest of four runs after one to warm up: of one thread, its own time, whoever else uses the core."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    run()
    took = []
    for _ in range(4):
        start = clock()
        run()
        took.append(clock() - start)
    return min(took)


class FastestProducts(Products):
    """Exact products by torch's own kernel or by another, whichever is faster at a shape."""

    def __init__(
        self,
        other: Products,
        tuner: Tuner | None = None,
        seconds: Callable[[Callable[[], object]], float] | None = None,
    ) -> None:
        self.own, self.other = Products(), other
        self.tuner, self.seconds = tuner or Tuner(), seconds or seconds_on_cpu
        self._chosen: dict[str, Products] = {}

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        self._fastest("multiply", a, b).multiply(a, b, out)

    def add(self, a: Tensor, b: Tensor, total: Tensor) -> None:
        self._fastest("add", a, b).add(a, b, total)

    def _fastest(self, operation: Operation, a: Tensor, b: Tensor) -> Products:
        if a.numel() * b.shape[1] < SMALL or torch.are_deterministic_algorithms_enabled():
            return self.own
        key = _key(operation, a, b)
        if key not in self._chosen:
            kept = self.tuner.kept(key)
            kept = kept if kept in ("own", "oneDNN") else self._measure(key, operation, a, b)
            _log.info("%s: %s", key, "torch's own" if kept == "own" else kept)
            self._chosen[key] = self.own if kept == "own" else self.other
        return self._chosen[key]

    def _measure(self, key: str, operation: Operation, a: Tensor, b: Tensor) -> str:
        a, b = a[:MEASURED_ROWS, :MEASURED_ROWS], b[:MEASURED_ROWS]
        results = a.new_zeros(2, len(a), b.shape[1])
        for products, result in zip((self.own, self.other), results, strict=True):
            getattr(products, operation)(a, b, result)
        if not (results[0] - results[1]).norm() <= TOLERANCE * results[0].norm():
            return "own"  # not kept: not a number may have been the reason
        own, other = (
            self.seconds(lambda p=products, r=result: getattr(p, operation)(a, b, r))  # type: ignore[misc]
            for products, result in zip((self.own, self.other), results, strict=True)
        )
        if (first := self.tuner.kept(key)) in ("own", "oneDNN"):  # by another rank, meanwhile
            return str(first)
        best = "oneDNN" if other < WORTH_IT * own else "own"
        self.tuner.keep(key, best)
        return best


def _key(operation: Operation, a: Tensor, b: Tensor) -> str:
    shape = " x ".join(str(1 << (size - 1).bit_length()) for size in (*a.shape, b.shape[1]))
    lies = "" if a.is_contiguous() else " transposed"
    threads = torch.get_num_threads()
    return f"float32 {operation} of {shape}{lies}, {processor()}, {threads} threads, torch {torch.__version__}"


def processor() -> str:
    """The processor's name where the system tells it, and the instructions that torch uses."""
    name, path = "unknown processor", Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
