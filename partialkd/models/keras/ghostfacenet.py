"""GhostFaceNetV1 of Keras, and of deepface, as a state_dict of ours (models/ghostfacenet.py).

Whose files: HamadYA/GhostFaceNets, read at 001ebfa (backbones/ghost_model.py) and 2d0940f (GhostFaceNets_with_Bias.py).
What is relied on: Keras names layers by kind and number (conv2d, conv2d_1, ...), numbers those of a kind as they are
made, from any number on, and the definition makes them in the order of our modules; the head's are named GDC_*. The
order in the file, which goes by depth, is not looked at. deepface's .pth (0.0.103) is laid out as torch's.
V2 is refused: no weights of it were published, and its attention is enlarged in another way here.
Arrays: a convolution (H, W, in, out), a depthwise one (H, W, channels, 1), PReLU (1, 1, channels).

Two things that ours has not are put into the running statistics, which changes nothing in evaluation: the bias before
the last BatchNorm is taken off its mean, and where the file states another epsilon than ours the difference is added to
the variance. Files of weights alone state none: it is taken to be ours, 1e-5, with which the authors trained.
Layers that the network does not have, such as a classifier, are left out, and named in one line of the log.
Errors: CheckpointError naming the file and the layer; shapes are compared by whoever puts the weights into a network.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

from torch import Tensor, nn

from partialkd.config import ModelConfig
from partialkd.errors import CheckpointError
from partialkd.models.build import build_empty
from partialkd.models.keras.hdf5 import KerasFile
from partialkd.models.wrapped import listed

HEAD = {"gdc.0": "GDC_dw", "gdc.1": "GDC_batchnorm", "features.0": "GDC_conv", "features.1": "pre_embedding"}
KINDS = {"conv2d": "conv", "depthwise_conv2d": "dw_conv", "batch_normalization": "bn", "activation": "prelu"}
NUMBERED = re.compile(rf"({'|'.join(KINDS)})(?:_(\d+))?")
ARRAYS = {  # of a layer, by kind: name in the file -> name of ours, number of dimensions
    "conv": {"kernel": ("weight", 4), "bias": ("bias", 1)},
    "dw_conv": {"depthwise_kernel": ("weight", 4)},
    "bn": {
        "gamma": ("weight", 1), "beta": ("bias", 1), "moving_mean": ("running_mean", 1),
        "moving_variance": ("running_var", 1),
    },
    "prelu": {"alpha": ("weight", 3)},
}  # fmt: skip
DEEPFACE_MARKS = {"bottlenecks.0.ghost_1.primary.conv.weight", "gdc_conv.weight", "pre_embedding.running_mean"}
DEEPFACE_PARTS = {
    r"^bottlenecks\.": "blocks.", r"ghost_(\d)": r"ghost\1", r"downsample": "down", r"^tail\.": "last.",
    r"\.se\.prelu\.": ".gate.act.", r"\.se\.": ".gate.", r"\.conv\.": ".0.", r"\.bn\.": ".1.", r"\.prelu\.": ".2.",
    r"^gdc_dw\.": "gdc.0.", r"^gdc_bn\.": "gdc.1.", r"^gdc_conv\.": "features.0.", r"^pre_embedding\.": "features.1.",
}  # fmt: skip
_log = logging.getLogger(__name__)


def of_keras(file: KerasFile) -> dict[str, Tensor]:
    """Give the state_dict of the GhostFaceNet that a file holds."""
    if "stem_conv" in file.layers and "GDC_dw" in file.layers:
        rule = "must be a GhostFaceNetV1: V2's attention is enlarged in another way here, at maps with odd sides"
        raise CheckpointError(f"{file.path}: {rule}")
    if "GDC_dw" not in file.layers or not any(NUMBERED.fullmatch(layer) for layer in file.layers):
        named = f"a model {file.model!r}, " if file.model else ""
        raise CheckpointError(
            f"{file.path}: must be a GhostFaceNetV1, the only Keras network that is read; "
            f"holds {named}{len(file.layers)} layers with weights: {listed(list(file.layers))}"
        )
    modules = _modules()
    names = _numbered(modules, file)
    state: dict[str, Tensor] = {}
    for name, module in modules.items():
        state |= _arrays(name, module, names[name], file)
    if beside := [layer for layer in file.layers if layer not in names.values()]:
        _log.info(f"{file.path}: left out {len(beside)} layers beside the network: {listed(beside)}")
    return _without_bias(state)


def of_deepface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state_dict of deepface's GhostFaceNet of torch; any other is given back as it is."""
    if not state.keys() >= DEEPFACE_MARKS:
        return state
    for theirs, ours in DEEPFACE_PARTS.items():
        state = {re.sub(theirs, ours, key): x for key, x in state.items()}
    return _without_bias(state)


def _without_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn the head's 1 x 1 convolution into a linear layer, and take its bias, if any, off the mean after it."""
    state = {**state, "features.0.weight": state["features.0.weight"].flatten(1)}
    if (bias := state.pop("features.0.bias", None)) is not None:
        state["features.1.running_mean"] = state["features.1.running_mean"] - bias
    return state


def _modules() -> dict[str, nn.Module]:
    """Name our modules that have parameters, in the order in which the published definition makes its layers."""
    network = build_empty(ModelConfig.model_validate({"name": "ghostfacenet_v1_s1"}), 112)
    return {name: module for name, module in network.named_modules() if module._parameters}


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        return "conv" if module.groups == 1 else "dw_conv"
    return {nn.PReLU: "prelu", nn.Linear: "conv"}.get(type(module), "bn")


def _numbered(modules: dict[str, nn.Module], file: KerasFile) -> dict[str, str]:
    """Give the layer of each module, by the numbers of V1's layers."""
    found: dict[str, list[tuple[int, str]]] = {kind: [] for kind in KINDS.values()}
    for layer in file.layers:
        if match := NUMBERED.fullmatch(layer):
            found[KINDS[match[1]]].append((int(match[2] or 0), layer))
    names = dict(HEAD)
    for keras, kind in KINDS.items():
        ours = [name for name, module in modules.items() if name not in HEAD and _kind(module) == kind]
        layers = [layer for _, layer in sorted(found[kind])]
        if len(layers) != len(ours):
            rule = f"must have {len(ours)} layers {keras} with weights, as GhostFaceNetV1 has"
            raise CheckpointError(f"{file.path}: {rule}, got {len(layers)}{_gap(keras, found[kind])}")
        names |= dict(zip(ours, layers, strict=True))
    return names


def _gap(keras: str, found: list[tuple[int, str]]) -> str:
    """Name the first number that is not there, of a kind in which all have weights."""
    numbers = sorted(number for number, _ in found)
    if keras == "activation" or not numbers:
        return ""
    absent = sorted(set(range(numbers[0], numbers[-1])) - set(numbers))
    return f", without {keras}_{absent[0]}" if absent else ""


def _arrays(name: str, module: nn.Module, layer: str, file: KerasFile) -> Iterator[tuple[str, Tensor]]:
    """Give the entries of one module from its layer."""
    kind = _kind(module)
    if layer not in file.layers:
        raise CheckpointError(f"{file.path}: has no layer {layer}")
    for array, (ours, dims) in ARRAYS[kind].items():
        if (x := file.layers[layer].get(array)) is None:
            if array != "bias":
                raise CheckpointError(f"{file.path}: {layer}: has no {array}, only {sorted(file.layers[layer])}")
            continue
        if x.dim() != dims:
            raise CheckpointError(f"{file.path}: {layer}: {array} must have {dims} dimensions, got {tuple(x.shape)}")
        yield f"{name}.{ours}", _laid_out(array, x, layer, module, file)


def _laid_out(array: str, x: Tensor, layer: str, module: nn.Module, file: KerasFile) -> Tensor:
    if array == "kernel":
        return x.permute(3, 2, 0, 1).contiguous()
    if array == "depthwise_kernel":
        return x.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1)
    if array != "moving_variance":
        return x.flatten()
    shifted = x + (file.epsilons.get(layer, module.eps) - module.eps)  # type: ignore[operator]
    if (shifted < 0).any():
        rule = f"epsilon {file.epsilons[layer]} is too small beside ours, {module.eps}, for"
        raise CheckpointError(f"{file.path}: {layer}: {rule} a variance of {float(x.min())}")
    return shifted
