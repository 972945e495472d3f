"""Export: the ONNX file and the safetensors file give the network's embeddings, or there is no file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import partialkd.export.onnx as export_module
from helpers.places import ROOT
from helpers.same_network import assert_same_network
from partialkd.config import InputConfig, ModelConfig, TeacherConfig
from partialkd.errors import CheckpointError
from partialkd.export.onnx import Exported, export, largest_difference
from partialkd.models import build_model
from partialkd.models.saved import open_model, save_model
from partialkd.teacher.network import open_teacher

CONFIG = ModelConfig(
    name="mobilefacenet_gdc",
    width=0.125,
    depth=0.2,
    embedding_dim=16,
    channels_last=True,
    activation_checkpointing=True,
)


def pictures(count: int, size: int = 32) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(5)) * 2 - 1


def trained(config: ModelConfig, size: int) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(config, size)
    with torch.no_grad():
        model(pictures(8, size))
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Exported]:
    model = trained(CONFIG, 32)
    random_state = torch.get_rng_state()
    done = export(model.state_dict(), CONFIG, 32, tmp_path_factory.mktemp("export") / "deep")
    assert torch.equal(torch.get_rng_state(), random_state)
    return model, done


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_onnxruntime_gives_the_networks_embeddings(exported: tuple[nn.Module, Exported], batch: int) -> None:
    model, done = exported
    session = onnxruntime.InferenceSession(done.onnx, providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == ["images"]
    (rows,) = session.run(["embeddings"], {"images": pictures(batch).numpy()})
    assert rows.shape == (batch, 16)
    torch.testing.assert_close(torch.from_numpy(rows), model(pictures(batch)), rtol=1e-3, atol=1e-4)
    assert done.difference <= 1e-4


@pytest.mark.slow
def test_both_files_describe_the_network(exported: tuple[nn.Module, Exported]) -> None:
    model, done = exported
    assert sorted(path.name for path in done.onnx.parent.iterdir()) == [
        "manifest.json",
        "model.onnx",
        "model.safetensors",
    ]
    metadata = onnxruntime.InferenceSession(done.onnx).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["model"]) == CONFIG.model_dump()
    assert (metadata["image_size"], metadata["mean"], metadata["std"], metadata["colour"]) == (
        "32",
        "127.5",
        "127.5",
        "rgb",
    )
    opened, config, size = open_model(done.safetensors)
    assert (config, size) == (CONFIG, 32)
    assert_same_network(opened, model, pictures(2))


@pytest.mark.slow
def test_the_file_is_one_that_older_runtimes_read(exported: tuple[nn.Module, Exported]) -> None:
    """onnxruntime 1.17 and onnx 1.15 take IR 9 and opset 20, and nothing newer."""
    model = onnx.load(exported[1].onnx)
    assert model.ir_version <= 9
    assert [(opset.domain, opset.version <= 20) for opset in model.opset_import] == [("", True)]
    onnx.checker.check_model(model)


@pytest.mark.slow
def test_an_exported_network_can_teach(exported: tuple[nn.Module, Exported]) -> None:
    model, done = exported
    config = TeacherConfig(source="onnx", path=str(done.onnx), embedding_dim=16, input=InputConfig(size=32))
    teacher = open_teacher(config, 32, "cpu")
    torch.testing.assert_close(teacher.embed(pictures(5)), model(pictures(5)), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["iresnet18", "mobilefacenet", "ir_se50", "edgeface_xs", "facelivtv2_xs", "ghostfacenet_v1_s2",
     "ghostfacenet_v2_s1"],
)  # fmt: skip
def test_the_other_families_export(name: str, tmp_path: Path) -> None:
    config = ModelConfig.model_validate({"name": name, "width": 0.125, "depth": 0.1, "embedding_dim": 16})
    done = export(trained(config, 48).state_dict(), config, 48, tmp_path)
    assert done.difference <= 1e-4


@pytest.mark.slow
def test_the_difference_is_that_of_the_embeddings(exported: tuple[nn.Module, Exported]) -> None:
    model, done = exported
    content = done.onnx.read_bytes()
    shifted, _, _ = open_model(done.safetensors)
    shifted.output_layer.bn.running_mean += 0.5
    wanted = nn.functional.normalize(shifted(pictures(4))) - nn.functional.normalize(model(pictures(4)))
    found = largest_difference(shifted, content)
    assert 0.2 * wanted.abs().max() < found < 5 * wanted.abs().max()
    with torch.no_grad():
        shifted.output_layer.linear.weight.fill_(torch.nan)
    assert not largest_difference(shifted, content) <= 1e9


@pytest.mark.parametrize("difference", [2e-3, float("nan")])
def test_a_failed_parity_check_writes_nothing(
    difference: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "to_onnx", lambda network, metadata, batch: b"")
    monkeypatch.setattr(export_module, "largest_difference", lambda network, content, batches: difference)
    with pytest.raises(CheckpointError, match=r"model\.onnx: .* within 0\.001 of the network's, got a difference of"):
        export(build_model(CONFIG, 32).state_dict(), CONFIG, 32, tmp_path / "out", tolerance=1e-3)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="export: does not fit the network"):
        export(build_model(CONFIG, 32).state_dict(), CONFIG, 64, tmp_path)


@pytest.mark.slow
def test_command_line(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", trained(CONFIG, 32), CONFIG, 32)
    command = [sys.executable, ROOT / "launch" / "export.py"]
    good = subprocess.run(
        [*command, tmp_path / "model.safetensors", tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert good.returncode == 0, good.stderr
    assert "largest difference" in good.stdout
    assert (tmp_path / "out" / "model.onnx").is_file()
    bad = subprocess.run(
        [*command, tmp_path / "absent", tmp_path / "out2"], capture_output=True, text=True, check=False
    )
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.strip().endswith("absent: no such file")
    assert not (tmp_path / "out2").exists()
