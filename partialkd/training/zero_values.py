"""Parameters and their moments in full, on whatever ranks a ZeRO stage keeps them: what a checkpoint says of them.

Shapes: those of the parameter, float32. Each method is collective: at stages 1-3 moments, and at stage 3 parameters
too, are spread over the ranks. Stages 1-3 keep two copies of a parameter: the optimiser's, and the working one that the
forward pass uses. Setting one value sets both, for the next loss and gradient are those of the working copy.
`deepspeed` is the library, which only student.py imports.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partialkd.world.world import World


class FullValues:
    """Values of the parameters of one optimiser under one DeepSpeed engine."""

    def __init__(self, deepspeed: Any, engine: Any, optimizer: torch.optim.Optimizer, stage: int, world: World) -> None:
        self.deepspeed, self.engine, self.optimizer, self.stage = deepspeed, engine, optimizer, stage
        self.world = world

    def owned(self) -> list[Tensor]:
        """List what the optimiser moves on this rank: parameters, at stages 1-3 flat parts of many of them."""
        if self.stage == 3:  # the groups of the optimiser hold them during a step only
            return list(self.engine.optimizer.fp32_partitioned_groups_flat)
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def relink(self) -> None:
        """Find in a moment's place what has been added to the optimiser's state since its first step."""
        if self.stage in (1, 2):  # DeepSpeed looks there once
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def parameter(self, parameter: nn.Parameter) -> Tensor:
        """Give a parameter's value, on every rank."""
        value = self.deepspeed.utils.safe_get_full_fp32_param(parameter)
        if value is not None:
            return value
        with self.deepspeed.zero.GatheredParameters([parameter]):  # stage 0, and what does not train
            return parameter.detach().clone()

    def moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        """Give what the optimiser remembers of a parameter under `key`, on every rank."""
        if self.stage == 0:
            return self.optimizer.state[parameter][key]
        return self.deepspeed.utils.safe_get_full_optimizer_state(parameter, key)

    def set_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set a parameter's value, given on every rank."""
        value = value.to(self.world.device, torch.float32).contiguous()
        if self.stage == 3:
            self.deepspeed.utils.safe_set_local_fp32_param(parameter, self._own_part(parameter, value))
        else:
            self.deepspeed.utils.safe_set_full_fp32_param(parameter, value)
        self._refresh(parameter, value)

    def set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """Set what the optimiser remembers, given on every rank; it must have made its state."""
        value = value.to(self.world.device, torch.float32).contiguous()
        if self.stage == 0:
            self.optimizer.state[parameter][key].copy_(value)
        elif self.stage == 3:
            self.deepspeed.utils.safe_set_local_optimizer_state(parameter, self._own_part(parameter, value), key)
        else:
            self.deepspeed.utils.safe_set_full_optimizer_state(parameter, value, key)

    def _refresh(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set the working copy."""
        with torch.no_grad(), self.deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)

    def _own_part(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """Cut out what stage 3 keeps of a value on this rank: equal parts, the last ones padded.

        DeepSpeed would cut this part out of a full value itself, but fails where it has padding.
        """
        each = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = F.pad(value.flatten(), (0, each * self.world.size - value.numel()))
        return padded.narrow(0, each * self.world.rank, each)


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Tell the shape of a parameter's value: one that stage 3 has sharded is empty itself."""
    return getattr(parameter, "ds_shape", parameter.shape)
