"""launch/evaluate.py: self-describing files, .pt with --model, ONNX of another convention, torchrun, errors."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers.places import ROOT
from partialkd.commands.evaluate import main
from partialkd.config import EvaluateConfig, ModelConfig
from partialkd.data.formats.verification_bin import read_bin, write_bin
from partialkd.evaluate.verification import evaluate_sets
from partialkd.evaluate.verification_tables import results_dict
from partialkd.models.build import build_model
from partialkd.models.saved import save_model
from partialkd.world.world import World, free_port

LAUNCH = ROOT / "launch" / "evaluate.py"
MODEL = ModelConfig(name="mobilefacenet", embedding_dim=16, width=0.25)
SIZE = 32


pytestmark = pytest.mark.usefixtures("own_world")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    images = []
    for pair in range(20):
        one, other = rng.integers(0, 256, (2, SIZE, SIZE, 3))
        for pixels in (one, 0.6 * one + 0.4 * other if pair % 2 else other):
            stream = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
            images.append(stream.getvalue())
    write_bin(tmp_path / "faces.bin", images, [bool(pair % 2) for pair in range(20)])
    return tmp_path / "faces.bin"


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(MODEL, SIZE).eval()


def _expected(embed: Any, faces: Path, **settings: Any) -> dict[str, Any]:
    config = EvaluateConfig(sets=(str(faces),), **settings)
    scores = evaluate_sets(embed, config, SIZE, False, World())
    return results_dict({name: {"_": row} for name, row in scores.items()})["sets"]["faces"]["_"]


def _json(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    target = tmp_path / "out.json"
    assert main([*arguments, "--device", "cpu", "--json", str(target)]) == 0
    return json.loads(target.read_text())


def test_a_file_that_describes_itself(tmp_path: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = _network()
    save_model(tmp_path / "student.safetensors", network, MODEL, SIZE)
    got = _json(tmp_path, str(tmp_path / "student.safetensors"), "--sets", str(faces), "--fars", "0.3", "--no-flip")
    assert got["sets"] == {"faces": {"student.safetensors": _expected(network, faces, fars=(0.3,), flip=False)}}
    assert got["settings"]["image_size"] == SIZE
    assert got["settings"]["flip"] is False
    table = capsys.readouterr().out
    assert "student.safetensors" in table
    assert "TAR % @ FAR 0.3" in table


@pytest.mark.slow
def test_a_state_dict_with_its_model_named(tmp_path: Path, faces: Path) -> None:
    network = _network()
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, tmp_path / "student.pt")
    options = ("--model", "mobilefacenet", "--embedding-dim", "16", "--width", "0.25", "--input-size", str(SIZE))
    got = _json(tmp_path, str(tmp_path / "student.pt"), "--sets", str(faces), *options)
    assert got["sets"]["faces"]["student.pt"] == _expected(network, faces)


def _write_onnx(path: Path, weight: Tensor) -> None:
    """Pixels (n, 3, S, S) -> (n, D): one matrix product."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Flatten", ["pixels"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["embedding"])],
        "matrix",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight.numpy(), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def test_onnx_of_another_convention(tmp_path: Path, faces: Path) -> None:
    """It takes BGR pixels as (pixel - 100) / 50; its width stands in the file."""
    weight = torch.randn(3 * SIZE * SIZE, 24, generator=torch.Generator().manual_seed(1))
    _write_onnx(tmp_path / "teacher.onnx", weight)

    def embed(images: Tensor) -> Tensor:
        return ((images * 127.5 + 127.5 - 100) / 50).flip(1).flatten(1) @ weight

    options = ("--input-size", str(SIZE), "--mean", "100", "--std", "50", "--colour", "bgr")
    got = _json(tmp_path, str(tmp_path / "teacher.onnx"), "--sets", str(faces), *options)["sets"]["faces"][
        "teacher.onnx"
    ]
    expected = _expected(embed, faces)
    assert got == expected
    assert expected != _expected(lambda images: images.flatten(1) @ weight, faces)  # the options matter


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_of_torchrun_say_the_same(tmp_path: Path, faces: Path) -> None:
    save_model(tmp_path / "student.safetensors", _network(), MODEL, SIZE)
    arguments = [str(tmp_path / "student.safetensors"), "--sets", str(faces), "--batch", "6"]
    alone = _json(tmp_path, *arguments)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command = [*torchrun, str(LAUNCH), *arguments, "--device", "cpu", "--json", str(tmp_path / "two.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("student.safetensors") == 1  # only rank 0 prints
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["settings"].pop("world_size") == 2
    assert alone["settings"].pop("world_size") == 1
    assert two == alone


@pytest.mark.slow
def test_another_size_names_the_option(tmp_path: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "student.safetensors", build_model(MODEL, 2 * SIZE), MODEL, 2 * SIZE)
    arguments = [str(tmp_path / "student.safetensors"), "--sets", str(faces), "--device", "cpu"]
    assert main(arguments) == 1
    message = f"must be {2 * SIZE} x {2 * SIZE} pixels (--resize brings every image to that size), got {SIZE} x {SIZE}"
    assert message in capsys.readouterr().err
    assert main([*arguments, "--resize"]) == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing.safetensors", "--sets", "faces.bin"], "missing.safetensors: no such file"),
        (["missing.onnx", "--sets", "none.bin"], "missing.onnx: no such file"),
        (
            ["weights.pt", "--sets", "faces.bin"],
            "weights.pt: does not say which network it holds: name it with --",
        ),
        (["faces.onnx", "--sets", "faces.bin"], "faces.onnx: cannot be read as ONNX"),
        (["faces.onnx", "--sets", "none.bin"], "none.bin: cannot be read"),
        (["x.onnx", "--sets", "faces.bin", "--folds", "1"], "folds: Input should be greater than or equal to 2, got 1"),
        (["x.onnx", "--sets", "faces.bin", "--json", "none/a.json"], "--json none/a.json: its folder must exist"),
        (["x.onnx", "--sets", "faces.bin", "--json", "."], "--json .: must be a file, is a folder"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    reason: str,
    faces: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(faces.parent)
    Path("weights.pt").write_bytes(b"")
    Path("faces.onnx").write_bytes(faces.read_bytes())
    assert main([*arguments, "--device", "cpu"]) == (1 if reason.startswith("none.bin") else 2)
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert reason in message
    assert message.count("\n") == 1


@pytest.mark.slow
def test_two_networks_on_the_same_pairs(tmp_path: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = _network()
    save_model(tmp_path / "one.safetensors", network, MODEL, SIZE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_model(tmp_path / "other.safetensors", network, MODEL, SIZE)
    one, other = (str(tmp_path / f"{name}.safetensors") for name in ("one", "other"))
    settings = ("--sets", str(faces), "--fars", "0.3")
    same = _json(tmp_path, one, "--against", one, *settings)["differences"]["faces"]
    assert same["accuracy"] == {"difference": 0.0, "interval": [0.0, 0.0]}
    got = _json(tmp_path, one, "--against", other, *settings)
    alone = [_json(tmp_path, model, *settings)["sets"]["faces"] for model in (one, other)]
    accuracies = [next(iter(row.values()))["accuracy"] for row in alone]
    difference = got["differences"]["faces"]["accuracy"]
    assert difference["difference"] == pytest.approx(accuracies[0] - accuracies[1])
    assert difference["interval"][0] <= difference["difference"] <= difference["interval"][1]
    assert "one.safetensors - other.safetensors, points" in capsys.readouterr().out
    assert main([one, "--against", str(tmp_path / "none.safetensors"), *settings, "--device", "cpu"]) == 2


def test_sets_that_are_groups(tmp_path: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "one.safetensors", _network(), MODEL, SIZE)
    other = tmp_path / "other.bin"
    pairs = read_bin(faces)
    write_bin(other, pairs.images[::-1], ~pairs.same[::-1])
    got = _json(tmp_path, str(tmp_path / "one.safetensors"), "--sets", str(faces), str(other), "--groups")
    accuracies = {name: row["one.safetensors"]["accuracy"] for name, row in got["sets"].items()}
    found = got["groups"]["accuracy"]
    assert found["mean"] == pytest.approx(sum(accuracies.values()) / 2)
    assert found["std"] == pytest.approx(abs(accuracies["faces"] - accuracies["other"]) / 2)
    assert found["worst_value"] == min(accuracies.values()) == accuracies[found["worst"]]
    low, high = found["interval"]["mean"]
    assert low < found["mean"] < high
    assert found["interval"]["worst_value"] == got["sets"][found["worst"]]["one.safetensors"]["interval"]["accuracy"]
    shown = capsys.readouterr().out
    assert "worst group" in shown
    assert f"{100 * found['mean']:.2f} [{100 * low:.1f}, {100 * high:.1f}]" in shown
