"""GhostFaceNets: published counts, TensorFlow's padding."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from partialkd.config import ModelConfig
from partialkd.models import ghostfacenet
from partialkd.models.build import build_empty

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_ghostfacenet_v2_has_the_published_counts() -> None:
    """HamadYA/GhostFaceNets, Flops.ipynb: GhostFaceNetV2-1.3-1, operations as TensorFlow's profiler counts them."""
    model = build_empty(ModelConfig(name="ghostfacenet_v2_s1", width=1.3), 112).eval()
    statistics = sum(x.numel() for key, x in model.named_buffers() if "num_batches" not in key)
    assert (sum(x.numel() for x in model.parameters()), statistics) == (6_795_720, 84_568)
    operations = [0]  # of elementwise work: two each of PReLU and gates, one of attention, four of means over 2 x 2
    each = {nn.PReLU: 2, ghostfacenet.SqueezeExcite: 2, nn.Sigmoid: 0, nn.AvgPool2d: 4, ghostfacenet.Ghost: 1}
    for module in model.modules():
        if type(module) in each and not (isinstance(module, ghostfacenet.Ghost) and module.attention is None):
            weight = each[type(module)]
            module.register_forward_hook(
                lambda _, __, out, weight=weight: operations.__setitem__(0, operations[0] + weight * out.numel())
            )
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 112, 112, device="meta"))
    assert (counter.get_total_flops() + operations[0]) / 2 == pytest.approx(272_105_108, rel=1e-4)
    assert counter.get_total_flops() / 2 == pytest.approx(272_105_108, rel=0.02)  # convolutions alone
    small = build_empty(ModelConfig(name="ghostfacenet_v1_s1", width=1.3), 112)
    everything = sum(x.numel() for key, x in small.state_dict().items() if "num_batches" not in key)
    assert round(everything / 1e6, 2) == 4.09  # GhostFaceNetV1-1.3-1


def test_padding_like_tensorflow_puts_more_at_the_end() -> None:
    """At stride 2 the first window of an even map begins at its first place, where torch's begins before it."""
    image = torch.arange(16.0).view(1, 1, 4, 4)
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[0, 0, 0, 0] = 1
    for tf, expected in ((True, [[0.0, 2.0], [8.0, 10.0]]), (False, [[0.0, 0.0], [0.0, 5.0]])):
        convolution = ghostfacenet.Padded(1, 1, 3, 2, tf=tf)
        convolution.weight.data.copy_(kernel)
        assert convolution(image)[0, 0].tolist() == expected
