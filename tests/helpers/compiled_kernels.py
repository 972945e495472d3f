"""Compile the fused kernels for a Hopper GPU, without one: `python tests/helpers/compiled_kernels.py D`."""

from __future__ import annotations

import json
import sys

from triton import compile as build_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from partialkd.centres.sweeps import row_kernels
from partialkd.centres.sweeps import sum_kernel as kernels
from partialkd.centres.sweeps.tiles import candidates, width_of


def compiled(dim: int) -> str:
    """JSON: of each kernel with its default tiles for capability 9.0, shared memory in bytes, whether wgmma is used."""
    found = []
    tiles = candidates(dim, 2, 227 * 1024)[0]
    for kernel in (kernels.sums_kernel, row_kernels.sgd_kernel, row_kernels.adamw_kernel):
        fixed = {
            "DRAWN": True,
            "NAMED": True,
            "LISTED": True,
            "MOMENTUM": True,
            "PARTS": 8,
            "UPCAST": False,
            "D": dim,
            "WIDTH": width_of(dim),
        }
        fixed |= {"HELD": tiles.held, "STREAMED": tiles.streamed}
        names = [parameter.name for parameter in kernel.params]
        kinds = {name: "constexpr" if name in fixed else _kind(name) for name in names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(kinds.values()) if kind.startswith("*")}
        constants = {(i,): fixed[name] for i, name in enumerate(names) if name in fixed}
        source = ASTSource(kernel, kinds, constants, aligned)
        options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
        built = build_kernel(source, target=GPUTarget("cuda", 90, 32), options=options)
        found.append((built.metadata.shared, "wgmma" in built.asm["ptx"]))
    return json.dumps(found)


def _kind(name: str) -> str:
    """Triton's name of an argument's type."""
    if name.endswith("_ptr"):
        return {"x_ptr": "*bf16", "unit_ptr": "*bf16", "own_ptr": "*i32", "rows_ptr": "*i32", "ids_ptr": "*i64"}.get(
            name, "*fp32"
        )
    whole = ("samples", "count", "tiles_per_split", "unit_key", "moment_key", "first_class")
    return "i32" if name in whole else "fp32"


if __name__ == "__main__":
    print(compiled(int(sys.argv[1])))
