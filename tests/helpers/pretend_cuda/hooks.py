"""Build and load `hooks.cpp`. Must come before torch is imported: torch looks for CUDA's hooks once."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("hooks.cpp")
COMPILER = shutil.which("g++") or shutil.which("clang++")


def load() -> None:
    """Load the hooks; RuntimeError if torch is there already."""
    if "torch" in sys.modules:
        raise RuntimeError("the pretend device must be there before torch is imported")
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(_built(torch)), mode=ctypes.RTLD_GLOBAL)


def _built(torch: Path) -> Path:
    """Compile once per source and version of torch (4 s) -> the library, in the folder for temporary files."""
    of = hashlib.sha256(SOURCE.read_bytes() + version("torch").encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"partialkd_pretend_cuda_{os.getuid()}_{of}.so"
    if not library.exists():
        if COMPILER is None:
            raise RuntimeError("the pretend device needs a C++ compiler (g++ or clang++)")
        made = library.with_suffix(f".{os.getpid()}.so")
        command = [COMPILER, "-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch / 'include'}", str(SOURCE), "-o"]
        subprocess.run([*command, str(made)], check=True)
        made.replace(library)
    return library
