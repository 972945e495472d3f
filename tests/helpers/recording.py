"""A recorder that stands in for a CUDA graph: it replays operations on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from partialkd.centres.sweeps.graphed import Run

Called = tuple[Callable[..., Any], Any, Any, Any]


class Recorder(TorchDispatchMode):
    """Remembers what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Called] = []

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operation(*args, **(kwargs or {}))
        self.calls.append((operation, args, kwargs or {}, out))
        return out


class Recording:
    """Stands in for a graph. Until it is replayed, and of what is not written by a replay, everything is NaN."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, run: Run) -> Run:
        self.captured += 1
        with Recorder() as recorder:
            results = run()

        def replay() -> tuple[Tensor, Tensor]:
            for result in results:
                result.fill_(torch.nan)
            for operation, args, kwargs, out in recorder.calls:
                for kept, new in zip(tree_leaves(out), tree_leaves(operation(*args, **kwargs)), strict=True):
                    if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():
                        kept.copy_(new)
            return results

        return replay
