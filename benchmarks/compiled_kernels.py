"""Compile the kernels for a Hopper GPU, without one, and count what the compiler made of them. No timing.

    python benchmarks/compiled_kernels.py [--dims 512 ...] [--kinds bf16 ...] [--kernels sums ...] [--first N]

Every candidate tile of `fused`, the kernel between the products of `gemm` (sum_terms, weigh_terms), and those that move
rows by a given gradient (*_update), are compiled by Triton for sm_90 and assembled by the ptxas that comes with Triton:

- executed / needed: multiply-adds of the loop over the streamed side, from the shapes of its matrix instructions and
  the warps that run them (without matrix units: its FMA instructions), divided by 2 x held x streamed x D (padded).
  Of kernels without products: numbers that all threads read of matrices, divided by what the matrices hold.
- registers per thread, bytes of stack per thread (what is spilled lies there), bytes of shared memory per program.

kinds: type of the rows and of products; rounded: float32 rows, multiplied in bfloat16; int8: rows of `gemm`. The result
file holds a fingerprint of the kernels' sources and tiles, so that a test can tell whether it is theirs.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import triton
from prettytable import PrettyTable
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from partialkd.centres import update_kernels
from partialkd.centres.sweeps import row_kernels, sum_kernel, term_kernel, tiles
from partialkd.centres.sweeps.tiles import PINNED, Kind, Tiles, candidates, width_of
from partialkd.storage.atomic_files import write_json

SHARED_BYTES = 227 * 1024  # a program's share of a Hopper processor
DIMS = (64, 128, 256, 512, 1024)
KERNELS = {"sums": sum_kernel.sums_kernel, "sgd": row_kernels.sgd_kernel, "adamw": row_kernels.adamw_kernel}
ASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
WHOLE = ("samples", "count", "tiles_per_split", "first_class", "first_row")
FIXED_TYPES = {"own_ptr": "*i32", "rows_ptr": "*i32", "ids_ptr": "*i64"}
# Kernels without products: the function, its constants, matrices that it reads, of them those in the type of the rows.
TERMS = (term_kernel.LINES, term_kernel.COLUMNS, term_kernel.WARPS)
PLAIN: dict[str, tuple[Any, dict[str, Any], int, tuple[str, ...]]] = {
    "sum_terms": (term_kernel.terms_kernel, {"MOVING": False}, 1, ("terms_ptr",)),
    "weigh_terms": (term_kernel.terms_kernel, {"MOVING": True}, 1, ("terms_ptr",)),
    "sgd_update": (update_kernels.sgd_update, {"MOMENTUM": True}, 3, ("unit_ptr", "momentum_ptr")),
    "adamw_update": (
        update_kernels.adamw_update, {"BY_ROW": False}, 4, ("unit_ptr", "first_ptr", "second_ptr"),
    ),
    "adamw_update, by row": (update_kernels.adamw_update, {"BY_ROW": True}, 3, ("unit_ptr", "first_ptr")),
}  # fmt: skip
PLAIN_KINDS = {name: ("bf16", "fp32", "int8")[: 3 if name == "sum_terms" else 2] for name in PLAIN}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS, help="embedding dimensions (default: %(default)s)")
    kinds, kernels = [*PINNED, "int8"], [*KERNELS, *PLAIN]
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds, help="default: all")
    parser.add_argument("--kernels", nargs="+", default=kernels, choices=kernels, help="default: all")
    parser.add_argument("--first", type=int, default=tiles.TRIED, help="candidates of each; 1: the default tiles")
    parser.add_argument("--out", type=Path, help="write one JSON object here")
    return parser.parse_args()


def fingerprint() -> str:
    """A hash of all that the counts depend on beside the compiler."""
    found = {**vars(sum_kernel), **vars(row_kernels), **vars(term_kernel), **vars(update_kernels)}
    kernels = (one for _, one in sorted(found.items()) if isinstance(one, triton.JITFunction))
    sources = [re.sub(r"\s+", " ", re.sub(r" +#.*", "", one.src)) for one in kernels]  # without comments
    sizes = [PINNED, row_kernels.PART, TERMS, update_kernels.ROWS, update_kernels.WARPS]
    return hashlib.sha256("".join([*sources, *map(repr, sizes)]).encode()).hexdigest()[:16]


def streamed_kind(kernel: str, kind: Kind) -> Kind:
    """What the kernel streams: samples are in the type of products."""
    return "bf16" if kernel != "sums" and kind == "rounded" else kind


def count(kernel: str, dim: int, kind: Kind, cut: Tiles) -> dict[str, Any]:
    """Compile one kernel of `fused` for these tiles -> its row of the result."""
    store = "*bf16" if kind == "bf16" else "*fp32"
    fixed = {
        "DRAWN": kind == "bf16", "NAMED": False, "LISTED": False, "MOMENTUM": True, "UPCAST": False,
        "ROUNDED": kind == "rounded", "PARTS": row_kernels.parts_of(cut, dim),
        "D": dim, "WIDTH": width_of(dim), "HELD": cut.held, "STREAMED": cut.streamed,
    }  # fmt: skip
    types = dict.fromkeys(("unit_ptr", "momentum_ptr", "first_ptr"), store)
    types["x_ptr"] = "*fp32" if kind == "fp32" else "*bf16"
    compiled = _compile(KERNELS[kernel], fixed, types, {"num_warps": cut.warps, "num_stages": cut.stages})
    executed, units = _multiply_adds(_loop(compiled.asm["ptx"]), cut.warps)
    share = executed / (2 * cut.held * cut.streamed * width_of(dim))
    return _row((kernel, kind, dim), list(astuple(cut)), share, units, compiled)


def count_plain(kernel: str, dim: int | None, kind: str) -> dict[str, Any]:
    """Compile one without products, for rows of a list -> its row of the result; dim None: it has none."""
    function, constants, matrices, of_rows = PLAIN[kernel]
    fixed = {**constants, "LISTED": True}
    if dim is None:
        tile = list(TERMS)
        fixed |= {"LINES": tile[0], "COLUMNS": tile[1], "SCALED": kind == "int8"}
    else:
        tile = [update_kernels.ROWS, width_of(dim), update_kernels.WARPS]
        fixed |= {"DRAWN": kind == "bf16", "NAMED": True, "D": dim, "WIDTH": tile[1], "HELD": tile[0]}
    types = dict.fromkeys(of_rows, "*fp32" if kind == "fp32" else "*bf16")
    compiled = _compile(function, fixed, types, {"num_warps": tile[2]})
    read = _numbers_read(compiled.asm["ttgir"])
    return _row((kernel, kind, dim), tile, read / (matrices * tile[0] * tile[1]), [], compiled)


def _row(name: tuple[str, str, int | None], tile: list[int], share: float, units: list[str], compiled: Any) -> Any:
    said = _assemble(compiled.asm["ptx"])
    registers, stack = (re.search(pattern, said) for pattern in (r"Used (\d+) registers", r"(\d+) bytes stack frame"))
    assert registers is not None, said
    assert stack is not None, said
    return {
        **dict(zip(("kernel", "kind", "dim"), name, strict=True)),
        "tiles": tile,
        "executed / needed": round(share, 3),
        "instructions": units,
        "registers": int(registers[1]),
        "stack": int(stack[1]),
        "shared": compiled.metadata.shared,
    }


def _compile(function: Any, fixed: dict[str, Any], types: dict[str, str], options: dict[str, int]) -> Any:
    """Compile with these constants, and types of arguments where they are not the usual ones."""
    names, types = [parameter.name for parameter in function.params], {**FIXED_TYPES, **types}
    kinds = {name: "constexpr" if name in fixed else types.get(name) or _scalar(name) for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, one in enumerate(kinds.values()) if one.startswith("*")}
    constants = {(i,): fixed[name] for i, name in enumerate(names) if name in fixed}
    source = ASTSource(function, kinds, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def _scalar(name: str) -> str:
    if name.endswith("_ptr"):
        return "*fp32"
    return "i32" if name in WHOLE or name.endswith("_key") else "fp32"


def _assemble(ptx: str) -> str:
    """Say what ptxas says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [str(ASSEMBLER), "-v", "--gpu-name=sm_90a", str(path), "-o", str(path.with_suffix(".cubin"))]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def _loop(ptx: str) -> str:
    """Find the loop with the most products; the innermost of those that have as many."""
    lines, labels, loops = ptx.splitlines(), dict[str, int](), list[str]()
    for number, line in enumerate(lines):
        if label := re.match(r"(\$L__BB\w+):", line):
            labels[label[1]] = number
        jump = re.search(r"\bbra(?:\.uni)?\s+(\$L__BB\w+)", line)
        if jump and jump[1] in labels:
            loops.append("\n".join(lines[labels[jump[1]] : number]))
    return max(loops, key=lambda body: (_multiply_adds(body, 4)[0], -len(body)))


def _multiply_adds(body: str, warps: int) -> tuple[float, list[str]]:
    """Count those that all warps of a program execute in this code -> number, the shapes of matrix instructions."""
    wide = re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16", body)
    narrow = re.findall(r"\bmma\.sync\.aligned\.m16n8k16", body)
    if not wide and not narrow:
        return len(re.findall(r"\bfma\.rn\.f32\b", body)) * 32.0 * warps, []
    shapes = sorted({f"m64n{n}k16" for n in wide}) + ["m16n8k16"] * bool(narrow)
    return sum(64 * int(n) * 16 for n in wide) * warps / 4 + len(narrow) * 16 * 8 * 16 * warps, shapes


def _numbers_read(ttgir: str) -> int:
    """Count the numbers of matrices that all threads of a program load, those that several threads load as often."""
    layouts = {}
    for name, *cut in re.findall(
        r"(#\w+) = #ttg\.blocked<\{sizePerThread = \[(\d+), (\d+)\], threadsPerWarp = \[(\d+), (\d+)\], "
        r"warpsPerCTA = \[(\d+), (\d+)\]", ttgir,
    ):  # fmt: skip
        layouts[name] = [math.prod(map(int, cut[axis::2])) for axis in range(2)]
    loads = re.findall(r"tt\.load .*: tensor<(\d+)x(\d+)x!tt\.ptr<\w+>, (#\w+)>", ttgir)
    assert loads
    whole = lambda size, step: -(-size // step) * step
    return sum(math.prod(map(whole, map(int, shape), layouts[name])) for *shape, name in loads)


def asked(args: argparse.Namespace) -> Iterator[Callable[[], dict[str, Any]]]:
    """Give what makes each row of the result."""
    for kernel, kind in itertools.product(args.kernels, args.kinds):
        if kernel in KERNELS and kind in PINNED:
            for dim in args.dims:
                for cut in candidates(dim, streamed_kind(kernel, kind), SHARED_BYTES)[: args.first]:
                    yield partial(count, kernel, dim, kind, cut)
        elif kernel in PLAIN and kind in PLAIN_KINDS[kernel]:
            for dim in (None,) if kernel.endswith("_terms") else args.dims:
                yield partial(count_plain, kernel, dim, kind)


def main() -> None:
    args = parse_args()
    found = []
    for made in asked(args):
        found.append(made())
        print(".", end="", file=sys.stderr, flush=True)
    table = PrettyTable(list(found[0]))
    table.add_rows([list(row.values()) for row in found])
    print(table)
    if args.out:
        versions = {"target": "sm_90", "triton": triton.__version__, "fingerprint": fingerprint()}
        write_json(args.out, {**versions, "kernels": found})


if __name__ == "__main__":
    main()
