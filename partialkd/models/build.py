"""Networks from their configuration: (b, 3, image_size, image_size) -> (b, embedding_dim) float32, not normalised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from partialkd.config import ModelConfig
from partialkd.models import edgeface, facelivt, ghostfacenet, mixfacenet
from partialkd.models.ir import IR, LAYOUTS
from partialkd.models.iresnet import STAGES, IResNet
from partialkd.models.mobilefacenet import VARIANTS, MobileFaceNet
from partialkd.models.network import Block, Network
from partialkd.models.vit import SIZES, VisionTransformer

FAMILIES: dict[str, type[Network]] = {
    **dict.fromkeys(STAGES, IResNet),
    **dict.fromkeys(VARIANTS, MobileFaceNet),
    **dict.fromkeys(SIZES, VisionTransformer),
    **dict.fromkeys(LAYOUTS, IR),
    **dict.fromkeys(edgeface.VARIANTS, edgeface.EdgeFace),
    **dict.fromkeys(facelivt.CHANNELS, facelivt.FaceLiVT),
    **dict.fromkeys(ghostfacenet.VARIANTS, ghostfacenet.GhostFaceNet),
    **dict.fromkeys(mixfacenet.VARIANTS, mixfacenet.MixFaceNet),
}


def build_model(config: ModelConfig, image_size: int) -> Network:
    """Build a network in training mode, its weights drawn from torch's global generator."""
    model = FAMILIES[config.name](config, image_size)
    for module in model.modules():
        if isinstance(module, Block):
            module.recompute = config.activation_checkpointing
    return in_memory_format(model)


def build_empty(config: ModelConfig, image_size: int) -> Network:
    """Build the network on the meta device: names and shapes, no memory, no random numbers drawn."""
    with torch.device("meta"), _NothingDrawn():
        return build_model(config, image_size)


class _NothingDrawn(TorchFunctionMode):
    """Draws no normal numbers: on the meta device torch would import its compiler for them, and fill nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (nn.init.normal_, Tensor.normal_):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def in_memory_format(model: Network) -> Network:
    """Lay the parameters out channels last, if the network's configuration says so."""
    return model.to(memory_format=torch.channels_last) if model.channels_last else model  # type: ignore[call-overload]
