"""torch's optimisers as the configuration names them, and the clipping of the global norm.

Weight decay acts on every trained parameter, those of BatchNorm and biases too, as in the published recipes
(5e-4 with SGD); there is one parameter group.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from partialkd.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """One group of all trained parameters: weight decay on all of them, as published."""
    if config.name == "adamw":
        return torch.optim.AdamW(
            trained(model), lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )
    return torch.optim.SGD(trained(model), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


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
