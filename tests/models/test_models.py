"""Networks: published names, shapes and figures; scaling; recomputation; weights from files; self-describing files."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from helpers.same_network import assert_same_network, assert_same_outputs
from partialkd.config import ModelConfig
from partialkd.errors import CheckpointError, ConfigError
from partialkd.export.onnx import export
from partialkd.models import build_model, edgeface, ghostfacenet, load_weights, mixfacenet
from partialkd.models.build import FAMILIES, build_empty
from partialkd.models.facelivt import fused_parameters
from partialkd.models.network import Block
from partialkd.models.saved import describe, open_model, save_model
from partialkd.models.weights import read_weights

PUBLISHED = Path(__file__).parent / "published"
SMALL = {"width": 0.125, "depth": 0.3, "embedding_dim": 16}
ONE_OF_EACH = [
    "iresnet18", "mobilefacenet", "mobilefacenet_large", "mobilefacenet_gdc", "vit_tiny",
    "ir_se50", "ir152", "curricularface_ir_se50", "evolve_ir50",
    "edgeface_xs", "facelivtv2_xs", "ghostfacenet_v1_s2", "ghostfacenet_v2_s1",
    "mixfacenet_m", "shufflemixfacenet_xs",
]  # fmt: skip

# Entries of the state_dict; parameters and multiply-adds at 112 x 112 in millions, with a tolerance of half the last
# digit published (AdaDistill: R50 and GDC; arcface_torch's model zoo: mobilefacenet-0.45G, ViT-T-1.5G, ViT-B-11G).
FIGURES: dict[str, tuple[int, float | None, tuple[float, float] | None]] = {
    "iresnet18": (187, None, None),
    "iresnet34": (331, None, None),
    "iresnet50": (475, 43.59, None),
    "iresnet100": (925, None, None),
    "iresnet200": (1807, None, None),
    "mobilefacenet": (333, None, (450, 15)),  # published with the normalisations' share, which is not counted here
    "mobilefacenet_large": (606, None, None),
    "mobilefacenet_gdc": (331, 1.199, (221, 0.5)),
    "vit_tiny": (150, None, (1500, 50)),
    "vit_small": (150, None, None),
    "vit_base": (282, None, (11_000, 500)),
    "ghostfacenet_v1_s1": (561, None, None),
    "ghostfacenet_v1_s2": (561, None, None),
    "ghostfacenet_v2_s1": (813, None, None),
    "ghostfacenet_v2_s2": (813, None, None),
    # otroshi/edgeface, README: operations, a multiply-add counted as two
    "edgeface_xxs": (160, 1.24, (94.72 / 2, 0.0047 * 94.72)),
    "edgeface_xs": (257, 1.77, (154.00 / 2, 0.005 * 154.00)),
    "edgeface_s": (257, 3.65, (306.12 / 2, 0.005 * 306.12)),
    "edgeface_base": (214, 18.23, (1398.83 / 2, 0.005 * 1398.83)),
    # novendrastywn/FaceLiVT, README; of l their definition gives others: 8.83 M and 331 M
    "facelivtv2_xs": (628, None, (90, 1)),
    "facelivtv2_s": (628, None, (179, 1.79)),
    "facelivtv2_m": (628, None, (258, 2.58)),
    # fdbtrs/mixfacenets, README; operations: test_mixfacenets_have_the_published_operations
    **{
        f"{kind}mixfacenet_{size}": (entries, parameters, None)
        for kind in ("", "shuffle")
        for size, entries, parameters in (("xs", 413, 1.04), ("s", 413, 3.07), ("m", 496, 3.95))
    },
}


pytestmark = pytest.mark.usefixtures("one_thread")


def small(name: str, **changes: object) -> ModelConfig:
    return ModelConfig.model_validate({"name": name, **SMALL, **changes})


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def warmed(config: ModelConfig, size: int) -> nn.Module:
    """A network with running statistics of its own, in eval mode."""
    torch.manual_seed(0)
    model = build_model(config, size)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # one batch says all
    with torch.no_grad():
        model(pictures(4, size))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


LISTED = sorted(path.stem for path in PUBLISHED.glob("*.txt") if path.stem != "digests")
DIGESTS = [
    tuple(line.split()) for line in (PUBLISHED / "digests.txt").read_text().splitlines() if not line.startswith("#")
]


@pytest.mark.parametrize("name", LISTED)
def test_state_dict_has_the_published_keys_and_shapes(name: str) -> None:
    lines = (PUBLISHED / f"{name}.txt").read_text().splitlines()[1:]
    published = dict(line.split(" ") for line in lines)
    state = build_empty(ModelConfig(name=name), 112).state_dict()
    assert {key: "x".join(map(str, value.shape)) or "scalar" for key, value in state.items()} == published


@pytest.mark.parametrize(("name", "entries", "parameters", "digest"), DIGESTS, ids=[name for name, *_ in DIGESTS])
def test_keys_shapes_and_parameters_are_those_of_the_authors_definition(
    name: str, entries: str, parameters: str, digest: str
) -> None:
    model = build_empty(ModelConfig(name=name), 112)
    state = model.state_dict()
    lines = sorted(f"{key} {'x'.join(map(str, x.shape)) or 'scalar'}" for key, x in state.items())
    assert len(state) == int(entries)
    assert sum(parameter.numel() for parameter in model.parameters()) == int(parameters)
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] == digest


@pytest.mark.parametrize("name", FIGURES)
def test_published_size_and_cost(name: str) -> None:
    entries, parameters, cost = FIGURES[name]
    model = build_empty(ModelConfig(name=name), 112).eval()
    assert len(model.state_dict()) == entries
    if parameters is not None:
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert round(millions, len(str(parameters).split(".")[1])) == parameters
    if cost is not None:
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 112, 112, device="meta"))
        assert counter.get_total_flops() / 2e6 == pytest.approx(cost[0], abs=cost[1])


@pytest.mark.parametrize(
    ("name", "millions"), [("facelivtv2_xs", 2.97), ("facelivtv2_s", 4.62), ("facelivtv2_m", 7.02)]
)
def test_parameters_after_fusion_are_the_published_ones(name: str, millions: float) -> None:
    assert round(fused_parameters(build_empty(ModelConfig(name=name), 112)) / 1e6, 2) == millions


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


def test_a_network_that_needs_larger_images_says_so() -> None:
    with pytest.raises(ConfigError, match=r"data.image_size must be at least 32 for edgeface_xs, got 16"):
        build_empty(ModelConfig(name="edgeface_xs"), 16)


def test_every_configurable_network_is_built() -> None:
    assert set(FAMILIES) == set(FIGURES) | {name for name, *_ in DIGESTS}


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


def test_published_details_of_training() -> None:
    model = build_model(small("iresnet18"), 32)
    fixed = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    assert fixed == ["features.weight"]
    assert build_model(ModelConfig(name="iresnet18", width=0.25), 32).layer4[
        1
    ].conv1.weight.std().item() == pytest.approx(0.1, rel=0.02)


def test_vit_masks_a_tenth_of_the_tokens_in_training_only() -> None:
    model = build_model(small("vit_tiny", depth=0.01), 64)  # 49 tokens, one block
    lengths: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    first, second = model(pictures(4, 64)), model(pictures(4, 64))
    assert lengths == [44, 44]
    assert not torch.equal(first, second)
    first.square().sum().backward()
    assert model.mask_token.grad is not None
    assert model.mask_token.grad.abs().sum() > 0
    model.eval()
    assert torch.equal(model(pictures(4, 64)), model(pictures(4, 64)))
    assert lengths[2:] == [49, 49]


def test_vit_replaces_masked_tokens_where_they_stood() -> None:
    model = build_model(small("vit_tiny", depth=0.01), 64)
    nn.init.constant_(model.mask_token, 1e4)
    masked = (model.trunk(pictures(3, 64)) == 1e4).all(dim=2)  # (3, 49)
    assert masked.sum(1).tolist() == [5, 5, 5]
    assert not torch.equal(masked[0], masked[1])
    # With an identity in place of blocks and norm, every other token is the one of its own position.
    model.blocks, model.norm = nn.Sequential(), nn.Identity()
    tokens = model.patch_embed(pictures(3, 64)) + model.pos_embed
    got = model.trunk(pictures(3, 64))
    kept = (got != 1e4).all(dim=2)
    torch.testing.assert_close(got[kept], tokens[kept])


# ------------------------------------------------------------------------------------------------ weights


WRAPPED = {
    "plain": lambda state: state,
    "module": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    "state_dict": lambda state: {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}},
    "arcface_torch": lambda state: {"epoch": 3, "global_step": 9, "state_dict_backbone": state, "state_optimizer": {}},
    "lightning": lambda state: {
        "state_dict": {"head.kernel": torch.zeros(16, 9)} | {f"model.{key}": value for key, value in state.items()},
        "hyper_parameters": {"arch": "ir_18"},
        "pytorch-lightning_version": "1.8.6",
    },
    "deepspeed": lambda state: {"module": {f"module.net.{key}": value for key, value in state.items()}, "lr": None},
    "any": lambda state: {f"wrapped.inner.{key}": value for key, value in state.items()},
    "with_options": lambda state: {"args": argparse.Namespace(lr=0.1), "model_state_dict": state},
    "no_counters": lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_known_forms_of_weights_load(form: str, tmp_path: Path) -> None:
    source = warmed(small("mobilefacenet"), 32)
    torch.save(WRAPPED[form](source.state_dict()), tmp_path / "weights.pt")
    target = build_model(small("mobilefacenet"), 32).eval()
    load_weights(target, tmp_path / "weights.pt")
    assert_same_network(target, source, pictures(2, 32))


def test_safetensors_and_half_precision_load(tmp_path: Path) -> None:
    source = warmed(small("iresnet18"), 32)
    save_file(
        {key: value.half() if value.is_floating_point() else value for key, value in source.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    target = build_model(small("iresnet18"), 32)
    load_weights(target, tmp_path / "w.safetensors")
    for key, value in target.state_dict().items():
        assert value.dtype == source.state_dict()[key].dtype
        torch.testing.assert_close(value, source.state_dict()[key], rtol=1e-3, atol=1e-4)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = build_model(small("mobilefacenet_gdc"), 32)
    before = copy.deepcopy(model.state_dict())
    state = dict(before)
    del state["conv1.conv.weight"]
    state["conv1.extra.weight"] = torch.zeros(2)
    state["conv_6_sep.bn.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "w.pt")
    message = str(caught.value)
    for part in (
        "w.pt",
        "1 keys missing: conv1.conv.weight",
        "1 keys unexpected: conv1.extra.weight",
        "conv_6_sep.bn.bias (3,) instead of (64,)",
    ):
        assert part in message
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_what_stands_beside_the_network_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = warmed(small("ir18"), 32)
    head = {"head.kernel": torch.zeros(16, 50), "head.t": torch.zeros(1), "model.fc.weight": torch.zeros(3, 16)}
    torch.save({"state_dict": head | {f"model.{k}": x for k, x in source.state_dict().items()}}, tmp_path / "a.ckpt")
    target = build_model(small("ir18"), 32).eval()
    with caplog.at_level(logging.INFO, logger="partialkd"):
        load_weights(target, tmp_path / "a.ckpt")
    assert_same_network(target, source, pictures(2, 32))
    (line,) = caplog.messages
    left = "left out 3 tensors beside the network (849 numbers): head.kernel, head.t, model.fc.weight"
    assert line == f"{tmp_path / 'a.ckpt'}: {left}"


def test_a_network_that_is_there_twice_must_be_chosen(tmp_path: Path) -> None:
    state = build_model(small("ir18"), 32).state_dict()
    twice = {f"{name}.{key}": value for name in ("student", "average") for key, value in state.items()}
    torch.save(twice, tmp_path / "w.pt")
    rule = r"w\.pt: must hold the network once: .*, got it under average\., student\.$"
    with pytest.raises(CheckpointError, match=rule):
        load_weights(build_model(small("ir18"), 32), tmp_path / "w.pt")


@pytest.mark.slow
@pytest.mark.parametrize("other", ["curricularface_ir50", "ir_se50"])
def test_relatives_are_told_apart(other: str, tmp_path: Path) -> None:
    """Their keys are those of the network that is wanted but for a few: more of them, or of another shape."""
    state = build_model(ModelConfig(name=other, embedding_dim=16), 16).state_dict()
    torch.save({f"net.{key}": value for key, value in state.items()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=rf"does not fit the network: .*; it looks like .*\b{other}\b"):
        load_weights(build_model(ModelConfig(name="ir50", embedding_dim=16), 16), tmp_path / "w.pt")


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


@pytest.mark.parametrize(
    "content", ["missing", "garbage", "list", "no_state", "nested", "code", "code_inside", "bad_safetensors"]
)
def test_unreadable_weights_are_errors(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ("w.safetensors" if content == "bad_safetensors" else "w.pt")
    objects = {
        "list": [1],
        "no_state": {"epoch": 1},
        "nested": {"model": {"model": {"model": {"model": {}}}}},
        "code": Trap(),
        "code_inside": {"model": {"conv1.conv.weight": Trap()}},
    }
    if content in objects:
        torch.save(objects[content], path)
    elif content != "missing":
        path.write_bytes(b"not weights at all")
    with pytest.raises(CheckpointError, match=r"w\."):
        load_weights(build_model(small("mobilefacenet_gdc"), 32), path)
    assert "unpickled" not in capsys.readouterr().out


# --------------------------------------------------------------------------------------- self-describing files


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_saved_model_opens_as_it_was(name: str, tmp_path: Path) -> None:
    config = small(name, channels_last=True)
    model = warmed(config, 48)
    save_model(tmp_path / "deep" / "model.safetensors", model, config, 48)
    state = torch.get_rng_state()
    opened, read_config, size = open_model(tmp_path / "deep" / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)  # opening must not shift a run's random numbers
    assert (read_config, size, opened.training) == (config, 48, False)
    assert_same_network(opened, model, pictures(2, 48))
    assert [p.requires_grad for p in opened.parameters()] == [p.requires_grad for p in model.parameters()]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model.safetensors"]


def test_a_saved_model_describes_itself(tmp_path: Path) -> None:
    config = small("vit_tiny")
    save_model(tmp_path / "m.safetensors", build_model(config, 32), config, 32)
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["model"]) == config.model_dump()
    rest = {key: value for key, value in metadata.items() if key not in ("model", "crc32")}
    expected = {"format": "partialkd-model-1", "image_size": "32", "mean": "127.5", "std": "127.5", "colour": "rgb"}
    assert rest == expected


@pytest.mark.slow
def test_a_flipped_bit_of_a_saved_model_is_found(tmp_path: Path) -> None:
    """In header or tensors; a flip in the name of the checksum leaves a file without one, and this network."""
    path, config = tmp_path / "m.safetensors", small("mobilefacenet_gdc")
    save_model(path, build_model(config, 32), config, 32)
    content, state = path.read_bytes(), read_weights(path)
    header = 8 + int.from_bytes(content[:8], "little")
    unnoticed = 0
    for place in np.linspace(0, len(content) - 1, 300).astype(int).tolist() + list(range(8, header, 97)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = read_weights(path)
        except CheckpointError:
            continue
        unnoticed += 1
        assert place < header
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)
    assert unnoticed <= len("crc32")
    damaged = bytearray(content)
    damaged[(header + len(content)) // 2] ^= 64
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: damaged: the checksum must be "):
        open_model(path)


def test_a_saved_model_without_checksum_is_read(tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    path, config = tmp_path / "m.safetensors", small("vit_tiny")
    model = build_model(config, 32).eval()
    save_file(model.state_dict(), path, describe(config, 32))
    assert_same_network(open_model(path)[0], model, pictures(2, 32))


def test_a_network_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    config = ModelConfig(name="mobilefacenet_gdc", width=0.125, depth=0.2, embedding_dim=16)
    model = build_model(config, 32)
    name, variance = next((key, x) for key, x in model.named_buffers() if key.endswith("running_var"))
    variance[0] = torch.inf
    for act in (
        lambda: save_model(tmp_path / "model.safetensors", model, config, 32),
        lambda: export(model.state_dict(), config, 32, tmp_path),
    ):
        with pytest.raises(CheckpointError, match=rf"{tmp_path}\S*: not written: NaN or infinity in {name}$"):
            act()
    assert not list(tmp_path.iterdir())
    save_file(model.state_dict(), tmp_path / "m.safetensors", describe(config, 32))  # an earlier version did
    with pytest.raises(CheckpointError, match=rf"^{tmp_path / 'm.safetensors'}: NaN or infinity in {name}$"):
        open_model(tmp_path / "m.safetensors")


def test_saving_under_a_wrong_description_keeps_the_old_file(tmp_path: Path) -> None:
    path, config = tmp_path / "m.safetensors", small("mobilefacenet_gdc")
    model = build_model(config, 32)
    save_model(path, model, config, 32)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="another shape"):
        save_model(path, model, config, 64)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(
    "metadata", [None, {"format": "other"}, {"format": "partialkd-model-1", "model": "{}", "image_size": "32"}]
)
def test_files_without_a_description_are_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "m.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: (does not describe|unreadable description)"):
        open_model(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        open_model(tmp_path / "absent.safetensors")
    (tmp_path / "g.safetensors").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        open_model(tmp_path / "g.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", {"depth": 1e9}), ("model", {"width": 1e300}), ("image_size", "99999999999"), ("image_size", "0")],
)
def test_a_description_without_bounds_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    """Before anything of that size is built: it would take for ever, or all memory."""
    described = describe(small("mobilefacenet_gdc"), 32)
    described[key] = json.dumps({**json.loads(described["model"]), **value}) if key == "model" else value
    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors", described)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: unreadable description: "):
        open_model(tmp_path / "m.safetensors")
