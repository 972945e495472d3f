"""How exactly, and by which kernels, CUDA computes in float32: for the whole process."""

from __future__ import annotations

import torch


def set_numerics(device: torch.device, tf32: bool = False, deterministic: bool = False) -> None:
    """Set it on CUDA; on the CPU do nothing.

    tf32: convolutions and products alike round their factors to 10 bits; torch by itself does so in convolutions only.
    deterministic: cuDNN takes its usual kernels. Otherwise it tries all that it has when a shape first comes up, and
    takes the fastest.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = not deterministic
