"""With this folder first on PYTHONPATH, and tests/ behind it, every program has the pretend device, all the time.

Triton's kernels run in its interpreter, in processes that measure them.
"""

from __future__ import annotations

import os
import sys

MEASURING = ("centre_step.py", "rivals.py", "host_waits.py")

if any(word.endswith(".py") or word == "pytest" for word in sys.orig_argv):
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

    from helpers.pretend_cuda import install, on_pretend_device

    install()
    on_pretend_device().__enter__()
    if any(word.endswith(MEASURING) for word in sys.orig_argv):
        from helpers.pretend_cuda.launches import interpret_kernels

        interpret_kernels()
