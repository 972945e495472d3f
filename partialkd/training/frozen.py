"""Steps in which a network is held still: what takes the place of its backward pass, and its mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from partialkd.config import PhaseConfig
from partialkd.world.world import World


class HeldSteps:
    """Counts the micro-steps of optimiser steps without a backward pass, and looks whether they are finite."""

    def __init__(self, world: World, accumulation: int) -> None:
        self.world, self.accumulation = world, accumulation
        self._squares: list[Tensor] = []  # of the embeddings' gradients, one per micro-step

    def backward(self, gradient: Tensor) -> None:
        """Note the gradient (b, D) of this rank's embeddings."""
        self._squares.append(gradient.square().sum().float())

    def step(self) -> Tensor | None:
        """Norm () of the embeddings' gradients on all ranks at the end of an optimiser step, collectively; else None.

        It is not finite if any rank's gradient was not.
        """
        if len(self._squares) < self.accumulation:
            return None
        total, self._squares = torch.stack(self._squares).sum(), []
        return self.world.sum(total).sqrt()

    @property
    def between_steps(self) -> bool:
        return not self._squares


def set_training(model: nn.Module, phase: PhaseConfig, training: bool) -> None:
    """Put a network into the mode of its phase: BatchNorm stays in eval mode with `freeze_batchnorm`."""
    model.train(training)
    for module in model.modules():
        if phase.freeze_batchnorm and isinstance(module, _BatchNorm):
            module.eval()
