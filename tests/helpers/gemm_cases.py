"""Cases of centres.backend = "gemm", as a program for Triton's interpreter: names of cases -> JSON of their errors."""

from __future__ import annotations

import json
import sys

import torch

from helpers import kernel_cases as cases
from helpers import kernel_checks
from helpers.kernel_cases import CASES, Case
from partialkd.centres import row_updates
from partialkd.centres.row_optimizers import RowAdamW, RowSGD
from partialkd.centres.store import CentreStore

CPU = torch.device("cpu")


def check(case: Case) -> list[dict[str, float]]:
    return [
        kernel_checks.check_sums(case, CPU, sweep=cases.gemm),
        kernel_checks.check_move(case, CPU, sweep=cases.gemm),
        kernel_checks.check_adamw(case, CPU, sweep=cases.gemm),
        kernel_checks.check_adamw(case, CPU, sweep=cases.gemm, second="full"),
    ]


def check_int8() -> dict[str, float]:
    """Rows of int8 numbers, which are multiplied without their scales."""
    case = CASES["sampled"]
    dense, queries = cases.build(case, CPU, 1)
    store = CentreStore.empty(dense.shard, dense.num_classes, case.dim, torch.int8, CPU)
    store.write(slice(None), dense.read(slice(None)))
    total, partition = cases.gemm(case).sums(store, queries)
    unit = store.directions(slice(None)).double()
    terms, _, _ = cases.terms_of(unit, queries, case.scale)
    return {"Z": cases.error(partition, terms.sum(1)), "O": cases.error(total, terms @ unit)}


def captured() -> dict[str, int]:
    """Graphs of three batches; each must give what it gives without one. What stands for a graph runs again."""
    found = {}
    for name, case in (("all rows", CASES["tails"]), ("samples", CASES["sampled"])):
        taken = []
        sweep = cases.gemm(case, capture=lambda run, taken=taken: taken.append(run) or run)
        sweep.device = "cpu"
        store, _ = cases.build(case, CPU, 0)
        for seed in range(3):
            _, queries = cases.build(case, CPU, seed)
            for got, wanted in zip(sweep.sums(store, queries), cases.gemm(case).sums(store, queries), strict=True):
                assert cases.error(got, wanted.double()) < 1e-5
        found[name] = len(taken)
    return found


def updates() -> dict[str, str]:
    """What the kernels that move rows do otherwise than torch."""
    store = CentreStore.empty(range(1), 1, 1, torch.float32, CPU)
    adamw = [RowAdamW(store, (0.9, 0.99), 1e-8, 0.0, second) for second in ("row", "full")]
    rules = [RowSGD(store, 0.9, 0.0), *adamw]
    return {rule.rule: row_updates.problem_of(rule, CPU) for rule in rules}


def main() -> None:
    cases.loop_bounds()
    kernel_checks.poisoned()
    row_updates.DEVICES = ("cpu",)
    found = {
        "updates": updates(),
        "int8": check_int8(),
        "captured": captured(),
        "cases": {name: check(CASES[name]) for name in sys.argv[1:]},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
