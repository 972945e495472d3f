"""Networks of every family: image sizes, scaling, layout of memory, recomputation, autocast."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from helpers.network_cases import ONE_OF_EACH, pictures, small, warmed
from helpers.places import ROOT
from helpers.same_network import assert_same_outputs
from partialkd.config import ModelConfig
from partialkd.errors import ConfigError
from partialkd.models import build_model, edgeface
from partialkd.models.build import build_empty
from partialkd.models.network import Block

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_network_that_needs_larger_images_says_so() -> None:
    with pytest.raises(ConfigError, match=r"data.image_size must be at least 32 for edgeface_xs, got 16"):
        build_empty(ModelConfig(name="edgeface_xs"), 16)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("size", [16, 33, 48, 112])
def test_any_image_size_gives_raw_float32_embeddings(name: str, size: int) -> None:
    size = max(size, edgeface.SMALLEST) if name.startswith("edgeface") else size
    model = warmed(small(name), size)
    with torch.no_grad():
        embeddings = model(pictures(3, size, seed=1))
    assert embeddings.shape == (3, 16)
    assert embeddings.dtype == torch.float32
    assert not torch.allclose(embeddings.norm(dim=1), torch.ones(3))
    assert not torch.allclose(embeddings[0], embeddings[1])
    with pytest.raises(ValueError, match=rf"3, {size}, {size}\), got \(2, 3, {size + 1}, {size + 1}\)"):
        model(torch.zeros(2, 3, size + 1, size + 1))


def test_width_and_depth_scale_channels_and_blocks() -> None:
    state = build_empty(ModelConfig(name="iresnet50", width=0.25, depth=0.5), 32).state_dict()
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert state["fc.weight"].shape == (512, 128 * 2 * 2)
    blocks = [len({key.split(".")[1] for key in state if key.startswith(f"layer{stage}.")}) for stage in range(1, 5)]
    assert blocks == [2, 2, 7, 2]  # of 3, 4, 14, 3
    tiny = build_empty(ModelConfig(name="iresnet18", width=0.01, depth=0.01), 32).state_dict()
    assert tiny["conv1.weight"].shape[0] == 8
    assert "layer4.0.conv1.weight" in tiny
    gdc = build_empty(ModelConfig(name="mobilefacenet_gdc", width=0.5), 48).state_dict()
    assert gdc["conv_3.model.0.conv.conv.weight"].shape == (64, 32, 1, 1)
    assert gdc["output_layer.conv_6_dw.conv.weight"].shape == (256, 1, 3, 3)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_channels_last_changes_the_layout_only(name: str) -> None:
    plain = warmed(small(name), 32)
    last = build_model(small(name, channels_last=True), 32).eval()
    last.load_state_dict(plain.state_dict())
    layouts = [p.is_contiguous(memory_format=torch.channels_last) for p in last.parameters() if p.dim() == 4]
    assert all(layouts)
    torch.testing.assert_close(last(pictures(2, 32)), plain(pictures(2, 32)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_recomputation_changes_neither_gradients_nor_statistics(name: str) -> None:
    torch.manual_seed(3)
    plain = build_model(small(name, dropout=0.2), 32)
    recomputing = build_model(small(name, dropout=0.2, activation_checkpointing=True), 32)
    recomputing.load_state_dict(plain.state_dict())
    runs = []
    for model in (plain, recomputing):
        passes = count_block_passes(model)
        torch.manual_seed(4)  # dropout, dropped paths, masks
        model(pictures(6, 32)).square().sum().backward()
        runs.append(passes[0])
    assert runs[1] == 2 * runs[0] > 0  # each block really ran twice
    for (key, ours), theirs in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None) == (not ours.requires_grad), key
        if ours.grad is not None and theirs.grad is not None:
            assert_same_outputs(ours.grad, theirs.grad)
    for (key, ours), theirs in zip(plain.named_buffers(), recomputing.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=key)


def count_block_passes(model: nn.Module) -> list[int]:
    """Counts the first layers of blocks that run, in the forward and the backward pass."""
    passes = [0]

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        passes[0] += 1

    for module in model.modules():
        if isinstance(module, Block):
            next(child for child in module.children() if not isinstance(child, Block)).register_forward_pre_hook(count)
    return passes


def test_autocast_reaches_the_trunk_but_not_the_head() -> None:
    model = warmed(small("mobilefacenet_gdc"), 32)
    seen: dict[str, torch.dtype] = {}
    model.conv_6_sep.register_forward_hook(lambda module, inputs, out: seen.update(trunk=out.dtype))
    model.output_layer.linear.register_forward_hook(lambda module, inputs, out: seen.update(head=out.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(pictures(2, 32)).dtype == torch.float32
    assert seen == {"trunk": torch.bfloat16, "head": torch.float32}


def test_no_compiler_is_imported_to_build_an_empty_network() -> None:
    """It takes seconds. Every network that can be configured, in a process that has not imported it yet."""
    code = (
        "import sys\n"
        "from partialkd.config import ModelConfig\n"
        "from partialkd.models.build import FAMILIES, build_empty\n"
        "empty = [build_empty(ModelConfig(name=name), 112) for name in FAMILIES]\n"
        "assert all(x.is_meta for network in empty for x in network.parameters())\n"
        "raise SystemExit('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
