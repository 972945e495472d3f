"""What a network costs, found by running it on tensors that have shapes but no memory.

The network's own forward (and backward) runs on fake tensors, at the true batch size, in the time of a few hundred
small calls; every storage that torch would allocate is counted from its birth to its release. So nothing here has to
be kept in step with the networks: recomputed blocks, autocast's copies and layers to come are seen as they are.
Not seen: workspaces inside libraries (cuDNN, oneDNN) and the allocator's rounding. Bytes and floating-point
operations (a multiply-add counts as two).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from partialkd.config import ModelConfig
from partialkd.models import build_model


@dataclass(frozen=True)
class NetworkCost:
    """What one forward, or one forward and backward, of a batch costs."""

    parameters: int  # numbers
    buffers: int  # bytes
    kept: int  # bytes alive between forward and backward: activations
    peak: int  # most bytes alive at once beside parameters and input; gradients of the parameters included
    flops: int


class _Allocations(TorchDispatchMode):
    """Counts the storages born while it is active, until they die."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._born(tensor.untyped_storage())
        return result

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Leave out storages that were there before."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = 0

    def _born(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._died, size)

    def _died(self, size: int) -> None:
        self.alive -= size


@lru_cache(maxsize=64)  # plans of one network are asked for many numbers of centres
def network_cost(model: ModelConfig, image_size: int, batch: int, precision: str, training: bool) -> NetworkCost:
    """What `batch` images cost in a network of ours; `precision` as of a phase ("fp32" or "bf16")."""
    network = build_model(model, image_size).train(training)
    fake = FakeTensorMode()
    _make_fake(network, fake)
    parameters, buffers = list(network.parameters()), list(network.buffers())
    allocations, flops = _Allocations(), FlopCounterMode(display=False)
    with fake:
        images = torch.empty(batch, 3, image_size, image_size)
        allocations.ignore([images, *parameters, *buffers])
        with allocations:
            kept = _run(network, images, precision, training, allocations)
        allocations.alive = 0
        with flops:  # apart: it holds on to recomputed tensors
            _run(network, images, precision, training, allocations)
    return NetworkCost(
        parameters=sum(parameter.numel() for parameter in parameters),
        buffers=sum(buffer.nbytes for buffer in buffers),
        kept=kept,
        peak=allocations.peak,
        flops=flops.get_total_flops(),
    )


def _run(network: nn.Module, images: Tensor, precision: str, training: bool, allocations: _Allocations) -> int:
    """Run it and return the bytes alive after the forward."""
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        embeddings = network(images).float()
    kept = allocations.alive
    if training:
        embeddings.sum().backward()
    return kept


def _make_fake(network: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by fake ones of the same shapes."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                shape = mode.from_tensor(parameter.detach())
                module._parameters[name] = nn.Parameter(shape, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)
