"""Taps: what named blocks inside a network give in its forward pass.

A block is any module, by its name in `named_modules()`. What it gives is seen as maps (b, C, H, W): maps as they are,
the tokens (b, n, C) of a square picture as (b, C, sqrt n, sqrt n), vectors (b, C) as (b, C, 1, 1).
Errors: ConfigError naming the key, the name, and names that there are. A transformer of ours leaves out patches while
it trains: what its blocks give then is no picture, and is refused.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from partialkd.errors import ConfigError, printable
from partialkd.models.network import Network

Then = Callable[[Tensor], Tensor]
SHOWN = 40  # names in an error


class Taps:
    """Hooks on named blocks, which keep what each gives."""

    def __init__(self, network: nn.Module, names: Sequence[str], then: Sequence[Then | None] = ()) -> None:
        """then: what is kept of each block in the place of its maps, computed in the same forward pass."""
        self._kept: list[list[Tensor]] = [[] for _ in names]
        self._hooks = [
            network.get_submodule(name).register_forward_hook(partial(self._keep, at, change))
            for at, (name, change) in enumerate(zip(names, then or [None] * len(names), strict=True))
        ]

    def _keep(self, at: int, change: Then | None, module: nn.Module, inputs: Any, given: Any) -> None:  # noqa: ARG002
        maps = as_maps(given)
        self._kept[at].append(maps if change is None else change(maps))

    @property
    def called(self) -> bool:
        """Whether every block has been, since the last call of `take`."""
        return all(self._kept)

    def clear(self) -> None:
        for kept in self._kept:
            kept.clear()

    def take(self, count: int) -> list[Tensor]:
        """Give what each block gave for the first `count` images since the last call, passes one after the other."""
        taken = [(kept[0] if len(kept) == 1 else torch.cat(kept))[:count] for kept in self._kept]
        self.clear()
        return taken

    def close(self) -> None:
        """Take the hooks off."""
        self.clear()
        for hook in self._hooks:
            hook.remove()


def as_maps(given: Any) -> Tensor:
    """Bring what a block gives to (b, C, H, W); ValueError where that is no picture."""
    if isinstance(given, Tensor) and given.dim() == 4:
        return given
    if isinstance(given, Tensor) and given.dim() == 2:
        return given[:, :, None, None]
    if isinstance(given, Tensor) and given.dim() == 3 and math.isqrt(given.shape[1]) ** 2 == given.shape[1]:
        side = math.isqrt(given.shape[1])
        return given.transpose(1, 2).unflatten(2, (side, side))
    shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
    raise ValueError(f"must give maps (b, C, H, W), vectors (b, C), or the tokens (b, n, C) of a square, got {shape}")


@torch.no_grad()
def tapped_channels(network: Network, names: Sequence[str], key: str, training: bool) -> list[int]:
    """Channels of what each block gives, without computing anything; ConfigError if it cannot be tapped.

    training: whether the network is to be in training mode then.
    """
    blank = copy.deepcopy(network).to("meta").train(training)
    known = dict(blank.named_modules())
    for name in names:
        if name not in known or not name:
            raise ConfigError(
                f"{key}: must name modules of the network, got {printable(name)!r}; {_others(name, known)}"
            )
    images = torch.zeros(2, 3, network.image_size, network.image_size, device="meta")
    found = []
    for name in names:
        taps = Taps(blank, [name])
        try:
            blank(images)
        except ValueError as error:
            raise ConfigError(f"{key}: {name} {error}") from error
        if not taps.called:
            raise ConfigError(f"{key}: {name} is not called in a forward pass, name a module that is")
        found.append(taps.take(len(images))[0].shape[1])
        taps.close()
    return found


def _others(name: str, known: dict[str, nn.Module]) -> str:
    close = difflib.get_close_matches(name, [one for one in known if one], 3)
    outer = [one for one in known if one and "." not in one][:SHOWN]
    inner = next((one for one in known if "." in one), "")
    like = f"like it: {', '.join(close)}; " if close else ""
    return f"{like}there are {', '.join(outer)} and modules inside them ({inner})"
