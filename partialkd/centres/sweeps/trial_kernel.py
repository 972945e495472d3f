"""Find out whether Triton works on a device: compile and launch one small kernel.

Triton compiles more than the kernel: a few C files of its own, by the C compiler it finds, into its cache, from which
it loads them. So it wants a compiler, and a cache and a folder for temporary files that can be written to and loaded
from.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

HINT = (
    "it wants a C compiler (gcc, or what CC names), and TRITON_CACHE_DIR and TMPDIR in folders that can be written to "
    "and loaded from (in a container with a read-only root: --tmpfs /tmp:exec)"
)


@triton.jit
def _fill_kernel(out_ptr: Any, count: Any, BLOCK: tl.constexpr) -> None:
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, at.to(tl.float32), mask=at < count)


@cache
def problem_with_triton(device: torch.device) -> str | None:
    """Say in one line why no kernel can be launched on this device, or None. Once per process and device."""
    try:
        found = torch.full((32,), torch.nan, device=device)
        _fill_kernel[(1,)](found, 32, BLOCK=32)
        right = found.tolist() == list(range(32))
    except Exception as error:  # of Triton's parts, of the compiler, of the system: they have no common base
        said = (str(error).strip() or "no reason given").partition("\n")[0]
        return f'"fused": Triton cannot launch a kernel here: {type(error).__name__}: {said}; {HINT}'
    return None if right else '"fused": a kernel that Triton launched here wrote wrong numbers'
