"""CUDA graphs and Triton kernels on the pretend device: operations replayed one by one, and Triton's interpreter."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from helpers.pretend_cuda.log import LOG
from helpers.pretend_cuda.runtime import Properties
from helpers.pretend_cuda.tensor import DeviceTensor
from helpers.recording import Called, Recorder

CAPTURING: list[Recorder] = []  # of the capture that is under way
LAUNCHED: dict[str, Counter[tuple[Any, ...]]] = {}  # by kernel: how often with which variant of its code


class Graph:
    """What was called while it was captured, to be done again into the same places."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.calls: list[Called] = []

    def replay(self) -> None:
        """Do it again."""
        for operation, args, kwargs, out in self.calls:
            again = operation(*args, **kwargs)
            for kept, new in zip(pytree.tree_leaves(out), pytree.tree_leaves(again), strict=True):
                if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)

    def reset(self) -> None:
        """Forget it."""
        self.calls.clear()


@contextlib.contextmanager
def graph(captured: Graph, **_: Any) -> Iterator[None]:
    """Capture; a wait of the host within is an error, as on CUDA."""
    before, LOG.forbids = LOG.forbids, 2
    try:
        with Recorder() as recorder:
            CAPTURING.append(recorder)
            yield
    finally:
        CAPTURING.clear()
        LOG.forbids = before
    captured.calls = recorder.calls


def interpret_kernels() -> None:
    """Let Triton's interpreter take tensors of the device, and note which variants of a kernel would be compiled."""
    from triton.runtime import driver, interpreter

    from helpers.kernel_cases import loop_bounds
    from partialkd.centres import update_kernels

    loop_bounds()
    update_kernels.ROWS = 512  # the interpreter takes about as long for a program of many rows as for one of few
    launch, execute = interpreter.InterpretedFunction.run, interpreter.GridExecutor.__call__

    def noted(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        free = self.kwargs.get("do_not_specialize") or ()
        given = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        variant = tuple((name, _variant(value, name in free)) for name, value in given.items())
        LAUNCHED.setdefault(self.__name__, Counter())[variant] += 1

        def start() -> None:
            launch(self, *args, grid=grid, warmup=warmup, **kwargs)

        before = [len(recorder.calls) for recorder in CAPTURING]
        start()
        for recorder, calls in zip(CAPTURING, before, strict=True):  # one launch, not the interpreter's own operations
            recorder.calls[calls:] = [(start, (), {}, None)]

    def on_host(self: Any, *args: Any, **kwargs: Any) -> Any:
        inner = lambda x: x.inner if isinstance(x, DeviceTensor) else x
        return execute(self, *map(inner, args), **{name: inner(value) for name, value in kwargs.items()})

    interpreter.InterpretedFunction.run = noted
    interpreter.GridExecutor.__call__ = on_host
    facts = {"max_shared_mem": Properties.shared_memory_per_block_optin}
    driver.set_active(SimpleNamespace(utils=SimpleNamespace(get_device_properties=lambda _: facts)))


def _variant(argument: Any, free: bool) -> Any:
    """What Triton compiles code for: types, alignment, and of integers whether they are 1 or divisible by 16.

    free: an argument that it is told not to specialise on.
    """
    if isinstance(argument, Tensor):
        return str(argument.dtype), argument.data_ptr() % 16 == 0
    if isinstance(argument, bool | str) or not isinstance(argument, int | float):
        return argument
    if isinstance(argument, float):
        return "float"
    wide = not -(2**31) <= argument < 2**31
    return ("int", wide) if free else ("int", wide, argument == 1, argument % 16 == 0)


def install() -> None:
    """Replace torch's graphs."""
    torch.cuda.CUDAGraph = Graph  # type: ignore[misc,assignment]
    torch.cuda.graph = graph  # type: ignore[misc,assignment]
