"""Importing an MXNet teacher without MXNet: against a plain computation from the file's numbers, and its refusals.

tests/test_mxnet.py holds the same importer to MXNet's own embeddings, where MXNet is installed.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.mxnet_arrays import array, whole
from helpers.mxnet_peer import network, random_values
from helpers.mxnet_recorder import Recorder
from helpers.places import ROOT
from partialkd.config import TeacherConfig
from partialkd.errors import CheckpointError
from partialkd.models.mxnet.checkpoint import import_checkpoint, read_checkpoint
from partialkd.models.saved import read_description
from partialkd.teacher.classifier import read_matrix
from partialkd.teacher.network import open_teacher

UNITS, CHANNELS, DIM, SIZE, CLASSES = (1, 1, 2, 1), 8, 16, 32, 6


def nodes(classes: int = CLASSES) -> list[dict[str, Any]]:
    recorder = Recorder()
    network(recorder, UNITS, CHANNELS, DIM, classes)
    return recorder.nodes


def shape_of(name: str, inputs: int) -> tuple[int, ...]:
    """Of a parameter; inputs: channels of the maps before its unit."""
    if name.startswith(("fc7", "pre_fc1", "fc1")):
        columns = 8 * CHANNELS * (SIZE // 16) ** 2
        return {"fc7_weight": (CLASSES, DIM), "pre_fc1_weight": (DIM, columns)}.get(name, (DIM,))
    stage = int(name[5]) if name.startswith("stage") else 4 if name.startswith("bn1") else 0
    outputs = CHANNELS << max(stage - 1, 0)
    if name == "conv0_weight":
        return (CHANNELS, 3, 3, 3)
    if "_bn1_" in name:
        return (inputs,)
    if name.endswith("weight"):
        side = 1 if "sc" in name else 3
        return (outputs, outputs if "conv2" in name else inputs, side, side)
    return (outputs,)


def parameters() -> dict[str, np.ndarray]:
    """ "arg:name" and "aux:name" -> values, as a trained file's."""
    rng, made = np.random.RandomState(11), {}
    for node in nodes():
        name = node["name"]
        if node["op"] != "null" or name == "data":
            continue
        stage, first = (int(name[5]), "unit1_" in name) if name.startswith("stage") else (0, False)
        inputs = (CHANNELS << max(stage - 2, 0)) if first else (CHANNELS << max(stage - 1, 0))
        values = random_values(name, shape_of(name, inputs), rng)
        made[f"{'aux' if '_moving_' in name else 'arg'}:{name}"] = values.astype(np.float32)
    return made


PARAMETERS = parameters()


def write(folder: Path, symbol: list[dict[str, Any]], values: dict[str, np.ndarray]) -> tuple[Path, Path]:
    (folder / "model-symbol.json").write_text(json.dumps({"nodes": symbol, "heads": [[len(symbol) - 1, 0, 0]]}))
    (folder / "model-0000.params").write_bytes(whole([array(value) for value in values.values()], list(values)))
    return folder / "model-symbol.json", folder / "model-0000.params"


def reference(pixels: Tensor, scale: float = 1 / 128, eps: float = 2e-5) -> Tensor:
    """The published network from the file's numbers, in float64: (b, 3, H, W) 0..255 -> (b, DIM)."""
    p = {name.partition(":")[2]: torch.from_numpy(value).double() for name, value in PARAMETERS.items()}

    def norm(x: Tensor, name: str, gamma: Tensor | None = None) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        mean, variance, beta = (p[f"{name}_{part}"].view(shape) for part in ("moving_mean", "moving_var", "beta"))
        gamma = (p[f"{name}_gamma"] if gamma is None else gamma).view(shape)
        return gamma * (x - mean) / torch.sqrt(variance + eps) + beta

    def prelu(x: Tensor, name: str) -> Tensor:
        return torch.where(x > 0, x, x * p[f"{name}_gamma"].view(1, -1, 1, 1))

    x = prelu(norm(F.conv2d((pixels.double() - 127.5) * scale, p["conv0_weight"], padding=1), "bn0"), "relu0")
    for stage, count in enumerate(UNITS, 1):
        for number in range(1, count + 1):
            name, stride = f"stage{stage}_unit{number}", 2 if number == 1 else 1
            y = F.conv2d(norm(x, f"{name}_bn1"), p[f"{name}_conv1_weight"], padding=1)
            y = prelu(norm(y, f"{name}_bn2"), f"{name}_relu1")
            y = norm(F.conv2d(y, p[f"{name}_conv2_weight"], stride=stride, padding=1), f"{name}_bn3")
            if number == 1:
                x = norm(F.conv2d(x, p[f"{name}_conv1sc_weight"], stride=2), f"{name}_sc")
            x = y + x
    x = norm(x, "bn1").flatten(1) @ p["pre_fc1_weight"].T + p["pre_fc1_bias"]
    return norm(x, "fc1", gamma=torch.ones(DIM, dtype=torch.float64))


PIXELS = torch.from_numpy(np.random.RandomState(4).randint(0, 256, (3, 3, SIZE, SIZE)).astype(np.float32))


def embedded(folder: Path, symbol: list[dict[str, Any]]) -> Tensor:
    import_checkpoint(*write(folder, symbol, PARAMETERS), folder / "out")
    config = TeacherConfig(source="checkpoint", path=str(folder / "out" / "model.safetensors"))
    return open_teacher(config, SIZE, "cpu").embed((PIXELS - 127.5) / 127.5).double()


def test_embeddings_are_those_of_the_file(tmp_path: Path) -> None:
    expected = reference(PIXELS)
    assert (embedded(tmp_path, nodes()) - expected).norm() <= 2e-6 * expected.norm()
    assert torch.equal(
        read_matrix(tmp_path / "out" / "classifier.safetensors"), torch.from_numpy(PARAMETERS["arg:fc7_weight"])
    )
    config, size = read_description(tmp_path / "out" / "model.safetensors")
    assert (config.embedding_dim, config.width, config.dropout, size) == (DIM, CHANNELS / 64, 0.4, SIZE)


def edited(**changes: Any) -> list[dict[str, Any]]:
    """The symbol with attributes of nodes replaced: name = {key: text, or None to leave it out}."""
    symbol = nodes()
    for node in symbol:
        for key, text in changes.get(node["name"], {}).items():
            node["attrs"][key] = text
            if text is None:
                del node["attrs"][key]
    return symbol


def test_scale_and_eps_are_taken_from_the_graph(tmp_path: Path) -> None:
    norms = [node["name"] for node in nodes() if node["op"] == "BatchNorm"]
    times = next(node["name"] for node in nodes() if node["op"] == "_mul_scalar")
    symbol = edited(**{name: {"eps": None} for name in norms}, **{times: {"scalar": "0.00784313725490196"}})
    expected = reference(PIXELS, scale=2 / 255, eps=1e-3)  # 1e-3: what MXNet means when a file says nothing
    assert (expected - reference(PIXELS)).norm() > 1e-4 * expected.norm()
    assert (embedded(tmp_path, symbol) - expected).norm() <= 2e-6 * expected.norm()


def test_older_files_name_their_attributes_otherwise(tmp_path: Path) -> None:
    for key in ("attr", "param"):
        symbol = [{**{k: v for k, v in node.items() if k != "attrs"}, key: node["attrs"]} for node in nodes()]
        assert read_checkpoint(*write(tmp_path, symbol, PARAMETERS)).config.embedding_dim == DIM


def test_half_precision_and_foreign_names(tmp_path: Path) -> None:
    """A file in float16; names of layers are free; what is part of neither network nor classifier is listed."""
    symbol = nodes(classes=0)
    values = {name: value.astype("<f2") for name, value in PARAMETERS.items() if "fc7" not in name}
    values = {name.replace("stage", "block"): value for name, value in values.items()} | {
        "arg:extra": np.ones(3, "<f4")
    }
    for node in symbol:
        node["name"] = node["name"].replace("stage", "block")
    found = read_checkpoint(*write(tmp_path, symbol, values))
    assert found.classifier is None
    assert found.unused == ["arg:extra"]
    assert {value.dtype for value in found.state.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage2_unit1_relu1": {"act_type": "leaky"}}, "node 'stage2_unit1_relu1': act_type must be prelu, got leaky"),
        ({"stage1_unit1_conv1": {"stride": "(2, 2)"}}, "node 'stage1_unit1_conv1': the unit's stride must be in its"),
        ({"stage1_unit1_conv2": {"stride": "(1, 1)"}}, "the shortcut must begin at the unit's input and have"),
        ({"stage3_unit2_conv2": {"stride": "(2, 2)"}}, "'stage3_unit2_conv2': must be: stride 2 and a shortcut"),
        ({"conv0": {"stride": "(2, 2)"}}, "node 'conv0': the first convolution must have stride 1, got 2"),
        ({"conv0": {"kernel": "(7, 7)"}}, r"node 'conv0': kernel, pad and no_bias must be \(3, 3\)"),
        ({"conv0": {"num_group": "3"}}, "node 'conv0': num_group must be 1, got 3"),
        ({"conv0": {"num_filter": "many"}}, "node 'conv0': num_filter must be a number, got 'many'"),
        ({"conv0": {"num_filter": "24"}}, r"channels must be c, then c, 2c, 4c, 8c .*, got 24, then \(8, 16, 32, 64\)"),
        ({"stage2_unit1_conv1": {"weight_norm": "1"}}, "node 'stage2_unit1_conv1': weight_norm must be absent, got 1"),
        ({"bn0": {"axis": "3"}}, "node 'bn0': axis must be 1, got 3"),
        ({"pre_fc1": {"flatten": "False"}}, "node 'pre_fc1': flatten must be True, got False"),
        ({"_minus_scalar2": {"scalar": "0"}}, "node '_minus_scalar2': pixels must become .* times .* got 0"),
        ({"_mul_scalar3": {"scalar": "-1"}}, "times a positive number, got 127.5 and -1"),
    ],
)  # fmt: skip
def test_another_network_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(*write(tmp_path, edited(**changes), PARAMETERS), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_operators_are_refused(tmp_path: Path) -> None:
    """Where squeeze-and-excitation multiplies, where an older unit ends in an activation, and without an embedding."""
    for name, op, message in [
        ("stage1_unit1_bn3", "broadcast_mul", "'stage1_unit1_bn3': BatchNorm expected here .*, got broadcast_mul"),
        ("bn1", "Flatten", "node 'bn1': BatchNorm expected here"),
        ("id", "BatchNorm", "node 'id': null expected here"),
    ]:
        symbol = copy.deepcopy(nodes())
        next(node for node in symbol if node["name"] == name)["op"] = op
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(*write(tmp_path, symbol, PARAMETERS))
    without = [{**node, "name": "embedding" if node["name"] == "fc1" else node["name"]} for node in nodes()]
    with pytest.raises(CheckpointError, match="must hold one node 'fc1', the embedding, got 0"):
        read_checkpoint(*write(tmp_path, without, PARAMETERS))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"nodes": 3}', '{"nodes": [{}]}', '{"nodes": [[1]]}', "[" * 100000]
)
def test_what_is_no_symbol(tmp_path: Path, content: str) -> None:
    symbol, params = write(tmp_path, nodes(), PARAMETERS)
    symbol.write_text(content)
    with pytest.raises(CheckpointError, match=r"model-symbol\.json: not an MXNet symbol"):
        read_checkpoint(symbol, params)


def test_a_graph_runs_forward(tmp_path: Path) -> None:
    """A node that reads itself or a later one would walk in a circle."""
    symbol = nodes()
    symbol[5]["inputs"] = [[5, 0, 0]]
    with pytest.raises(CheckpointError, match="inputs must be nodes before it"):
        read_checkpoint(*write(tmp_path, symbol, PARAMETERS))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("arg:bn1_gamma", None, "arg:bn1_gamma is missing"),
        ("aux:fc1_moving_var", np.full(DIM, -1, "<f4"), "fc1_moving_var: variances must not be negative, got -1.0"),
        ("arg:conv0_weight", np.full((8, 3, 3, 3), np.nan, "<f4"), "arg:conv0_weight: holds NaN or infinity"),
        ("arg:conv0_weight", np.ones((8, 3, 3, 3), "i1"), "conv0_weight: must be of a floating-point type, got int8"),
        ("arg:conv0_weight", np.ones((8, 3, 5, 5), "<f4"), "of another shape: conv1.weight"),
        ("arg:pre_fc1_weight", np.ones((DIM, 100), "<f4"), r"must read 64 square maps, got \(16, 100\)"),
        ("arg:fc7_weight", np.ones((5, 3), "<f4"), r"fc7_weight: must have the shape \(classes, 16\), got \(5, 3\)"),
        ("arg:fc7_bias", np.ones(CLASSES, "<f4"), "arg:fc7_bias: must be zero"),
    ],
)  # fmt: skip
def test_parameters_that_do_not_fit(tmp_path: Path, name: str, value: np.ndarray | None, message: str) -> None:
    values = {key: found for key, found in PARAMETERS.items() if key != name}
    files = write(tmp_path, nodes(), values if value is None else values | {name: value})
    with pytest.raises(CheckpointError, match=message) as raised:
        import_checkpoint(*files, tmp_path / "out")
    assert "model-0000.params" in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_image_size_must_fit_the_last_layer(tmp_path: Path) -> None:
    files = write(tmp_path, nodes(), PARAMETERS)
    assert read_checkpoint(*files, image_size=17).image_size == 17
    with pytest.raises(CheckpointError, match=r"made for images of 17\.\.32 pixels a side, got 33"):
        read_checkpoint(*files, image_size=33)


@pytest.mark.slow
def test_command(tmp_path: Path) -> None:
    files = write(tmp_path, nodes(), PARAMETERS | {"arg:extra": np.ones(3, "<f4")})
    script = ROOT / "launch" / "import_mxnet.py"
    run = lambda: subprocess.run([sys.executable, script, *files, tmp_path / "out"], capture_output=True, text=True)
    done = run()
    assert done.returncode == 0, done.stderr
    assert "iresnet34, images of 32 pixels" in done.stdout
    assert "classifier.safetensors: 6 classes of 16 numbers" in done.stdout
    assert "not part of either: arg:extra" in done.stdout
    again = run()
    assert again.returncode == 1
    assert "already exists" in again.stderr
