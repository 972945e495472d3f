"""BatchNorm over the batches of all ranks (`sync_batchnorm`).

Shapes: (b, C, ...) per rank -> the same, normalised with the mean and variance of each channel over all ranks.
The ranks' batches may differ in size. Running statistics as in torch (unbiased variance), equal on every rank.
Gradient: exact, through the shared mean and variance to every rank's input; weight and bias get this rank's share.

On CUDA torch.nn.SyncBatchNorm does this with fused kernels. It refuses CPU tensors ("expected input tensor to be on
GPU"), so `SummedBatchNorm` writes out the same thing over `World`, which gloo carries too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from partialkd.world.world import World


def synchronise(model: nn.Module, world: World) -> nn.Module:
    """Replace every BatchNorm of `model` by one over all ranks; parameters, buffers and their names stay."""
    if world.size == 1:
        return model
    if world.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, SummedBatchNorm(child, world))
    return model


class SummedBatchNorm(_BatchNorm):
    """Takes over `plain`'s parameters and buffers. In eval mode it is `plain`."""

    def __init__(self, plain: _BatchNorm, world: World) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum, plain.affine, plain.track_running_stats)
        self._parameters, self._buffers = plain._parameters, plain._buffers
        self.world = world
        self.train(plain.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        channels = (1, -1) + (1,) * (x.dim() - 2)
        others = tuple(axis for axis in range(x.dim()) if axis != 1)
        wide = x.to(
            torch.promote_types(x.dtype, torch.float32)
        )  # under autocast: statistics in float32, as BatchNorm's own kernels do
        count = self.world.sum(x.new_tensor(x.numel() // x.shape[1], dtype=torch.float32))
        mean = _SumOverRanks.apply(wide.sum(others), self.world) / count
        centred = wide - mean.view(channels)
        variance = _SumOverRanks.apply(centred.square().sum(others), self.world) / count
        if self.track_running_stats:
            self._track(mean.detach(), (variance * count / (count - 1)).detach())
        scaled = centred * (variance + self.eps).rsqrt().view(channels)
        if self.affine:
            scaled = scaled * self.weight.view(channels) + self.bias.view(channels)
        return scaled.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, input: Tensor) -> None:
        """BatchNorm1d, 2d and 3d alike: any number of axes from two on."""


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks whose gradient is the sum of all ranks' gradients: each rank's loss depends on the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.world.sum(gradients[0]), None
