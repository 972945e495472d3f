"""torch.compile of a network, in place: names, copies and saved files are those of the plain network.

`nn.Module.compile` replaces how a module is called and nothing else, so state_dict keys and parameter names get no
prefix, and a deep copy (or what is pickled) is the plain network again. What the network computes differs from the
plain one by rounding (under 1e-5 of embeddings and gradients in float32, in the tests); with dropout other units are
dropped, drawn from the same generator, so that a resumed run still goes on bit for bit.
Compiling takes from seconds to minutes at the first call, once for every shape of input: callers keep to one.
torch compiles one piece of code a few times in a process (`recompile_limit`), then calls it plainly, with a warning.
CUDA graphs record the kernels of a call and replay them: only for calls without gradient, for a replay writes its
results over those of the one before, which gradients under accumulation would not outlive.
Errors: ConfigError naming the key where the machine cannot compile: the CPU wants a C++ compiler (g++, or what CXX
names), CUDA wants Triton and a C compiler.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor, nn

from partialkd.errors import ConfigError
from partialkd.world.passes import Pass

BACKEND = "inductor"  # torch's own


def compile_in_place(network: nn.Module, device: torch.device, key: str, graphs: bool = False) -> None:
    """Compile a network from its next call on. key: of the configuration; graphs: with CUDA graphs, on CUDA."""
    require_compiler(device, key)
    mode = "reduce-overhead" if graphs and device.type == "cuda" else "default"
    network.compile(backend=BACKEND, mode=mode, dynamic=False)


def require_compiler(device: torch.device, key: str) -> None:
    """Raise ConfigError unless something can be compiled for this device, which takes seconds, once per process."""
    with Pass("trying the compiler"):
        problem = _problem(device.type)
    if problem:
        raise ConfigError(f"{key} must be false where torch.compile does not work, got true: {problem}")


@cache
def _problem(kind: str) -> str | None:
    """Say why nothing compiles for this kind of device, or None. Tried, not asked: too much can be missing."""
    unseen = float(time.time_ns())  # a constant that no cache of compiled code has
    try:
        torch.compile(_scaled_sine, backend=BACKEND, dynamic=False)(torch.ones(64, device=kind), unseen)
    except Exception as error:  # dynamo's, inductor's, Triton's and the system's have no common base
        cause = getattr(error, "inner_exception", error)
        return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
    return None


def _scaled_sine(x: Tensor, scale: float) -> Tensor:
    return x.sin() * scale
