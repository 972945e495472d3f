"""Moving average of the network in training: a <- d a + (1 - d) w after each optimiser step that was taken.

It starts as the network's own weights and has no warm-up: after n steps the start still weighs d^n in it. Averaged are
the trained parameters and, with the same decay, BatchNorm's running statistics (each rank its own, which are averaged
over the ranks where a network is made of them); whole numbers, and parameters that do not train, are the network's own.
The average of a parameter is kept where the optimiser keeps its moments, as one more of them (`AVERAGE`): in float32
and, at ZeRO stages 1-3, sharded over the ranks as they are. An update is one pass over this rank's part, with no
collective.
Source: Polyak averaging with a constant decay, as EMA of weights in arXiv:1703.01780, eq. (1). Differs: running
statistics are averaged, not recomputed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

AVERAGE = "average"  # beside the moments in the optimiser's state, and before a name in checkpoints


class WeightsAverage:
    """The average of one network on one rank; the optimiser must have made its state."""

    def __init__(self, network: nn.Module, owned: Iterable[Tensor], state: dict[Tensor, Any], decay: float) -> None:
        """owned: tensors that the optimiser moves on this rank, whatever parameters are in them; state: of each."""
        self.decay, self._state, self._owned = decay, state, list(owned)
        self._live = {name: x for name, x in network.named_buffers() if x.is_floating_point()}
        self.buffers = {name: x.detach().clone() for name, x in self._live.items()}
        for parameter in self._owned:
            state[parameter][AVERAGE] = parameter.detach().clone()

    @torch.no_grad()
    def stepped(self) -> None:
        """Move towards the network after a step."""
        for parameter in self._owned:
            self._state[parameter][AVERAGE].lerp_(parameter, 1 - self.decay)
        for name, buffer in self._live.items():
            self.buffers[name].lerp_(buffer, 1 - self.decay)

    def local_state(self) -> dict[str, Tensor]:
        """Give the averages of this rank's buffers "average.<name>", on the CPU."""
        return {f"{AVERAGE}.{name}": x.to("cpu", copy=True) for name, x in self.buffers.items()}

    def load_local(self, local: dict[str, Tensor]) -> None:
        """Take over what `local_state` gave."""
        for name, buffer in self.buffers.items():
            buffer.copy_(local[f"{AVERAGE}.{name}"])
