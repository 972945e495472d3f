"""torch's optimisers as the configuration names them, and the clipping of the global norm.

Weight decay acts on every trained parameter, those of BatchNorm and biases too, as in the published recipes
(5e-4 with SGD). There is one parameter group, or with `lr_factors` two: the network's head and the rest of it, each
with its factor on the learning rate ("factor" of the group).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from partialkd.config import OptimizerConfig
from partialkd.models.network import head_parameters


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Put all trained parameters into groups: weight decay on all of them, as published."""
    groups = list(_groups(model, config))
    if config.name == "adamw":
        return torch.optim.AdamW(
            groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _groups(model: nn.Module, config: OptimizerConfig) -> Iterator[dict[str, Any]]:
    factors = config.lr_factors
    if factors.backbone == factors.head:
        yield {"params": list(trained(model)), "factor": factors.head}
        return
    head = set(head_parameters(model))
    yield {"params": [one for one in trained(model) if one not in head], "factor": factors.backbone}
    yield {"params": [one for one in trained(model) if one in head], "factor": factors.head}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step: in each group times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def moment_keys(config: OptimizerConfig) -> tuple[str, ...]:
    """Name what the optimiser remembers of every parameter, as torch does."""
    if config.name == "adamw":
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if config.momentum else ()


def trained(model: nn.Module) -> Iterator[nn.Parameter]:
    """Give the parameters that an optimiser moves."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def clip(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients so that their norm is at most `limit` (0: leave them). The norm before, on the device."""
    if limit:
        return nn.utils.clip_grad_norm_(parameters, limit)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
