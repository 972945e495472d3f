"""Base of every network here: input check, memory format, head in full precision, recomputed blocks, scaling.

Shapes: images (b, 3, image_size, image_size) -> embeddings (b, embedding_dim) in the parameters' type (float32),
not normalised. Under autocast the trunk runs in the lower precision and the head (last linear layer and its
normalisation) in float32, as in the published training code of these networks.
Errors: ValueError if the images have another shape than the network was built for.

Recomputed blocks (activation checkpointing, non-reentrant) give the same gradients and the same BatchNorm running
statistics as plain ones: the second pass through a block must not count its batch a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from partialkd.config import ModelConfig

ADAPTERS = "adapters"  # a part that training may add to a network, and that is no part of what is saved of it


class Network(nn.Module):
    """Base of the networks: a `trunk` (b, 3, H, W) -> maps or tokens, and their `embedding` (b, embedding_dim)."""

    head_modules: tuple[str, ...]  # parts (as of `named_modules`) from the last maps to the embedding

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.embedding_dim = config.embedding_dim
        self.channels_last = config.channels_last

    def forward(self, images: Tensor) -> Tensor:
        expected = (3, self.image_size, self.image_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must have the shape (b, {', '.join(map(str, expected))}), got {tuple(images.shape)}"
            )
        if self.channels_last or (self.channels_last is None and images.is_cuda):
            images = images.contiguous(memory_format=torch.channels_last)
        maps = self.trunk(images)
        maps = maps.to(next(self.parameters()).dtype)
        device = maps.device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return self.embedding(maps)
        with torch.autocast(device, enabled=False):
            return self.embedding(maps)

    @property
    def stage_ends(self) -> tuple[str, str, str, str]:
        """Name the modules (as of `named_modules`) at whose ends a quarter, half, ... of the trunk has been computed.

        In convolutional networks each ends with the last map of its size: halved 1 to 4 times, in some 2 to 5 times.
        """
        raise NotImplementedError

    def trunk(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def embedding(self, maps: Tensor) -> Tensor:
        raise NotImplementedError


def head_parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    """Give the parameters of the head of a network, which names what is in it (`head_modules`), and of adapters."""
    head: tuple[str, ...] = network.head_modules  # type: ignore[assignment]
    names = (*head, ADAPTERS) if hasattr(network, ADAPTERS) else head
    return (parameter for name in names for parameter in network.get_submodule(name).parameters())


class Block(nn.Module):
    """A part of a network whose activations are kept, or, with `recompute`, computed again in the backward pass."""

    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(self.compute, x, use_reentrant=False, context_fn=self._contexts)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _StatisticsAside(self)


class _StatisticsAside:
    """Makes the block's BatchNorms write to copies of their running statistics while it is open.

    Copies, not `track_running_stats = False`: recomputation must save as many tensors as the first pass did.
    """

    def __init__(self, block: nn.Module) -> None:
        self.norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
        self.kept: list[dict[str, Tensor | None]] = []

    def __enter__(self) -> None:
        self.kept = [dict(norm._buffers) for norm in self.norms]
        for norm in self.norms:
            norm._buffers.update({name: None if x is None else x.clone() for name, x in norm._buffers.items()})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for norm, buffers in zip(self.norms, self.kept, strict=True):
            norm._buffers.update(buffers)


def scaled_channels(published: int, width: float) -> int:
    """Return the channel count at `width`: a multiple of 8, at least 8; the published count at width 1."""
    return max(8, int(published * width / 8 + 0.5) * 8)


def scaled_blocks(published: int, depth: float) -> int:
    """Return the blocks of a stage at `depth`: at least one; the published count at depth 1."""
    return max(1, int(published * depth + 0.5))


def halved(size: int, times: int) -> int:
    """Return the side of a map after `times` convolutions 3x3 of stride 2 and padding 1: half, rounded up."""
    for _ in range(times):
        size = (size + 1) // 2
    return size
