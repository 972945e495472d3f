"""Compile the fused kernels for a Hopper GPU, without one, and count what the compiler made of them. No timing.

    python benchmarks/compiled_kernels.py [--dims 512 ...] [--kinds bf16 ...] [--kernels sums ...] [--first N]

Every candidate tile of every kernel is compiled by Triton for sm_90 and assembled by the ptxas that comes with Triton:

- executed / needed: multiply-adds of the loop over the streamed side, from the shapes of its matrix instructions and
  the warps that run them (without matrix units: its FMA instructions), divided by 2 x held x streamed x D (padded).
- registers per thread, bytes of stack per thread (what is spilled lies there), bytes of shared memory per program.

kinds: type of the rows and of products; rounded: float32 rows, multiplied in bfloat16. The result file holds a
fingerprint of the kernels' sources and tiles, so that a test can tell whether it is theirs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import triton
from prettytable import PrettyTable
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from partialkd.centres.sweeps import row_kernels, sum_kernel, tiles
from partialkd.centres.sweeps.tiles import PINNED, Kind, Tiles, candidates, width_of
from partialkd.storage.atomic_files import write_json

SHARED_BYTES = 227 * 1024  # a program's share of a Hopper processor
DIMS = (64, 128, 256, 512, 1024)
KERNELS = {"sums": sum_kernel.sums_kernel, "sgd": row_kernels.sgd_kernel, "adamw": row_kernels.adamw_kernel}
ASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
WHOLE = ("samples", "count", "tiles_per_split", "unit_key", "moment_key", "first_class")
FIXED_TYPES = {"own_ptr": "*i32", "rows_ptr": "*i32", "ids_ptr": "*i64"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS, help="embedding dimensions (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", default=list(PINNED), choices=list(PINNED), help="default: all")
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=list(KERNELS), help="default: all")
    parser.add_argument("--first", type=int, default=tiles.TRIED, help="candidates of each; 1: the default tiles")
    parser.add_argument("--out", type=Path, help="write one JSON object here")
    return parser.parse_args()


def fingerprint() -> str:
    """A hash of all that the counts depend on beside the compiler."""
    found = {**vars(sum_kernel), **vars(row_kernels)}
    kernels = (one for _, one in sorted(found.items()) if isinstance(one, triton.JITFunction))
    sources = [re.sub(r"\s+", " ", re.sub(r" +#.*", "", one.src)) for one in kernels]  # without comments
    return hashlib.sha256("".join([*sources, repr(PINNED), str(row_kernels.PART)]).encode()).hexdigest()[:16]


def streamed_kind(kernel: str, kind: Kind) -> Kind:
    """What the kernel streams: samples are in the type of products."""
    return "bf16" if kernel != "sums" and kind == "rounded" else kind


def count(kernel: str, dim: int, kind: Kind, cut: Tiles) -> dict[str, Any]:
    """Compile one kernel for these tiles -> its row of the result."""
    compiled = _compile(kernel, dim, kind, cut)
    ptx = compiled.asm["ptx"]
    said = _assemble(ptx)
    needed = 2 * cut.held * cut.streamed * width_of(dim)
    executed, units = _multiply_adds(_loop(ptx), cut.warps)
    registers, stack = (re.search(pattern, said) for pattern in (r"Used (\d+) registers", r"(\d+) bytes stack frame"))
    assert registers is not None, said
    assert stack is not None, said
    return {
        "kernel": kernel,
        "kind": kind,
        "dim": dim,
        "tiles": [cut.held, cut.streamed, cut.warps, cut.stages],
        "executed / needed": round(executed / needed, 3),
        "instructions": units,
        "registers": int(registers[1]),
        "stack": int(stack[1]),
        "shared": compiled.metadata.shared,
    }


def _compile(kernel: str, dim: int, kind: Kind, cut: Tiles) -> Any:
    function, store = KERNELS[kernel], "*bf16" if kind == "bf16" else "*fp32"
    fixed = {
        "DRAWN": kind == "bf16", "NAMED": False, "LISTED": False, "MOMENTUM": True, "UPCAST": False,
        "ROUNDED": kind == "rounded", "PARTS": max(1, cut.held * width_of(dim) // row_kernels.PART),
        "D": dim, "WIDTH": width_of(dim), "HELD": cut.held, "STREAMED": cut.streamed,
    }  # fmt: skip
    types = {**FIXED_TYPES, "x_ptr": "*fp32" if kind == "fp32" else "*bf16", "unit_ptr": store}
    types |= {"momentum_ptr": store, "first_ptr": store}
    names = [parameter.name for parameter in function.params]
    kinds = {name: "constexpr" if name in fixed else types.get(name) or _scalar(name) for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, one in enumerate(kinds.values()) if one.startswith("*")}
    constants = {(i,): fixed[name] for i, name in enumerate(names) if name in fixed}
    options = {"num_warps": cut.warps, "num_stages": cut.stages}
    source = ASTSource(function, kinds, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def _scalar(name: str) -> str:
    if name.endswith("_ptr"):
        return "*fp32"
    return "i32" if name in WHOLE else "fp32"


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


def main() -> None:
    args = parse_args()
    asked = [(kernel, kind, dim) for kernel in args.kernels for kind in args.kinds for dim in args.dims]
    found = []
    for kernel, kind, dim in asked:
        for cut in candidates(dim, streamed_kind(kernel, kind), SHARED_BYTES)[: args.first]:
            found.append(count(kernel, dim, kind, cut))
            print(".", end="", file=sys.stderr, flush=True)
    table = PrettyTable(list(found[0]))
    table.add_rows([list(row.values()) for row in found])
    print(table)
    if args.out:
        made = {"target": "sm_90", "triton": triton.__version__, "fingerprint": fingerprint(), "kernels": found}
        write_json(args.out, made)


if __name__ == "__main__":
    main()
