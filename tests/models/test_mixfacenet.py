"""MixFaceNets: published operations and names, the shuffle of channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from partialkd.config import ModelConfig
from partialkd.models import mixfacenet
from partialkd.models.build import build_empty

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("size", "millions"), [("xs", 161.9), ("s", 451.7), ("m", 626.1)])
def test_mixfacenets_have_the_published_operations(size: str, millions: float) -> None:
    """Cut off after one digit, not rounded. A multiply-add counts as two, and elementwise work too, as its authors do.

    That is, fdbtrs/ElasticFace, utils/countFLOPS.py: two operations each of BatchNorm, one of biases, activations and
    of the means in gates.
    """
    model = build_empty(ModelConfig.model_validate({"name": f"mixfacenet_{size}"}), 112).eval()
    each = {nn.BatchNorm2d: 2, nn.BatchNorm1d: 2, nn.PReLU: 1, nn.SiLU: 1, mixfacenet.Gate: 1}
    operations = [0]
    for module in model.modules():
        weight = each.get(type(module), int(isinstance(module, nn.Conv2d) and module.bias is not None))
        module.register_forward_hook(
            lambda _, __, out, weight=weight: operations.__setitem__(0, operations[0] + weight * out.numel())
        )
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 112, 112, device="meta"))
    total = (counter.get_total_flops() + operations[0]) / 1e6
    assert 0 <= total - millions < 0.1


def test_mixfacenets_names_are_the_published_ones() -> None:
    """Read from backbones/mixnetm.py: some of every kind of layer."""
    state = build_empty(ModelConfig(name="mixfacenet_s"), 112).state_dict()
    for key, shape in {
        "features.init_block.conv1.conv.weight": (16, 3, 3, 3),
        "features.init_block.conv2.conv1.conv.weight": (16, 1, 3, 3),
        "features.init_block.conv2.conv2.bn.running_var": (16,),
        "features.stage1.unit1.exp_conv.conv.0.weight": (48, 8, 1, 1),
        "features.stage1.unit1.exp_conv.activ.weight": (96,),
        "features.stage1.unit1.conv2.conv.1.weight": (12, 48, 1, 1),
        "features.stage2.unit1.conv1.conv.2.weight": (48, 1, 7, 7),
        "features.stage2.unit1.se.conv1.bias": (12,),
        "features.stage3.unit2.se.conv2.weight": (480, 20, 1, 1),
        "features.stage4.unit4.conv1.conv.4.weight": (144, 1, 11, 11),
        "features.stage4.unit6.conv2.conv.1.weight": (100, 600, 1, 1),
        "tail.activ.weight": (1024,),
        "feautre_layer.dw_conv.conv.weight": (1024, 1, 7, 7),
        "feautre_layer.dw_conv.bn.weight": (1024,),
        "feautre_layer.pw_conv.conv.weight": (512, 1024, 1, 1),
        "features_norm.weight": (512,),
    }.items():
        assert tuple(state[key].shape) == shape, key


def test_channels_are_shuffled_in_pairs() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert mixfacenet._shuffled(x).flatten().tolist() == [0, 2, 4, 1, 3, 5]
