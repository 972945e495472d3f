"""Whole steps with centres.backend = "gemm" over ranks against the dense reference, as a program for the interpreter.

    TRITON_INTERPRET=1 python -m helpers.gemm_ranks RANKS

Prints, by case, how often each kernel was started on all ranks together; ends with an error where a step is wrong.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import torch

from helpers import dense
from helpers.centre_cases import ADAMW, compare, one_step, problem, sampled
from partialkd.centres import row_updates
from partialkd.world.world import World

# By name: method, classes, and settings of the step. Of 2 classes a third rank has none.
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "all rows": ("arcface", 40, {}),
    "one step after another": ("cosface", 40, {"steps": 3}),
    "micro-steps": ("arcface", 40, {"splits": 2}),
    "samples": ("arcface", 40, {"sample_rate": 0.3}),
    "micro-steps of samples": ("combined", 40, {"sample_rate": 0.3, "splits": 2}),
    "AdamW": ("arcface", 40, {"optimizer": ADAMW}),
    "AdamW of samples": ("cosface", 40, {"sample_rate": 0.3, "optimizer": ADAMW}),
    "fewer classes than ranks": ("cosface", 2, {}),
    "fixed": ("arcdistill", 40, {}),
    "moving averages": ("ada_weighted", 40, {}),
}
UNTRAINED = ("fixed", "moving averages")  # centres that no gradient moves


def step(world: World, name: str, p: dense.Problem, settings: dict[str, Any]) -> dict[str, Any]:
    """Take a step as `one_step`, with kernels on the CPU -> the same, and "kernels"."""
    from triton.runtime.interpreter import InterpretedFunction

    launch, kernels = InterpretedFunction.run, Counter[str]()

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        kernels[self.__name__] += 1
        return launch(self, *args, **kwargs)

    row_updates.DEVICES = ("cpu",)
    InterpretedFunction.run = counted
    try:
        return {**one_step(world, name, p, settings), "kernels": kernels}
    finally:
        InterpretedFunction.run = launch


def main(size: int) -> None:
    found = {}
    for case, (name, classes, settings) in CASES.items():
        p = problem("duplicates", classes)
        p = sampled(p, settings["sample_rate"]) if "sample_rate" in settings else p
        alike = {"backend": "gemm", "products": "fp32", "chunk_rows": 7, "dtype": torch.float32}
        results = compare(name, p, size, 2e-6, step, **alike, **settings)
        found[case] = dict(sum((one["kernels"] for one in results), Counter()))
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
