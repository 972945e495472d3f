"""`partialkd export --to`: what holds is written, what does not is said; bad input is one line before any work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from helpers.edge_cases import CONFIG, Collapsed, drawings, graph_of, network, weights_of, write_pictures, write_set
from partialkd.commands.export import main
from partialkd.export.base import ExportError, Graph, Target
from partialkd.export.int8 import LEAST_IMAGES, Int8
from partialkd.export.onnx import to_onnx
from partialkd.export.onnx_targets import Fp16, InsightFace, Onnx
from partialkd.export.opencv import OpenCV
from partialkd.export.targets import TARGETS, chosen_targets
from partialkd.models.saved import save_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network file and a set."""
    folder = tmp_path_factory.mktemp("edge")
    save_model(folder / "m.safetensors", network(), CONFIG, 32)
    write_set(folder / "set")
    return folder


@pytest.mark.slow
def test_the_command_writes_what_holds_and_says_what_does_not(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = next(iter(weights_of(graph_of(network()))))
    monkeypatch.setitem(TARGETS, "fp16", lambda: _named("fp16", first))
    options = ["--to", "onnx,fp16", "--set", str(place / "set")]
    (tmp_path / "model_fp16.onnx").write_bytes(b"of an earlier export")
    assert main([str(place / "m.safetensors"), str(tmp_path), *options]) == 1
    said = capsys.readouterr()
    assert "| model.onnx |" in said.out
    assert "fp16: not written: cosine to the network must be at least" in said.err
    assert "first wrong at layer conv1" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "manifest.json", "model.onnx"]
    onnx_facts, half = json.loads((tmp_path / "export.json").read_text())["targets"]
    assert (onnx_facts["not_written"], half["files"]) == (None, [])
    assert onnx_facts["cosine_least"] > 0.9999
    assert onnx_facts["tar"] == onnx_facts["tar_network"]


def _named(name: str, weight: str) -> Target:
    target = Collapsed(weight)
    target.name, target.files = name, ("model_fp16.onnx",)
    return target


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--to", "tensorrt"], 2, "--to must name targets (onnx, fp16, int8, "),
        (["--to", ""], 2, "--to must name targets"),
        (["--to", "onnx"], 1, "targets are checked on a verification set: name --set"),
        (["--to", "onnx", "--set", "absent.bin"], 1, "--set absent.bin: no such file or folder"),
        (["--to", "int8", "--set", "{set}"], 1, "int8: calibration wants the training set: export a run folder"),
        (["--to", "int8", "--set", "{set}", "--calibrate", "{few}"], 1, "calibration wants 64 images of the training"),
        (["--to", "insightface", "--set", "{set}"], 1, "insightface: "),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_before_any_work(
    options: list[str], status: int, said: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (place / "few").exists():
        write_pictures(place / "few", count=3)
    options = [one.format(set=place / "set", few=place / "few") for one in options]
    try:
        got = main([str(place / "m.safetensors"), str(tmp_path / "out"), *options])
    except SystemExit as ended:
        got = int(str(ended.code))
    assert got == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]
    assert status == 2 or len(lines) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("partialkd.commands.export.described", lambda path: pytest.fail("it has begun"))
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        for options in ([], ["--to", "onnx", "--set", str(place / "set")]):
            with pytest.raises(SystemExit, match="2"):
                main([str(place / "m.safetensors"), str(out), *options])
            said = capsys.readouterr().err.strip().splitlines()[-1]
            assert f"{out}: must be a folder that can be written to, or made; {tmp_path / 'file'} is not" in said
    assert (tmp_path / "file").read_text() == "mine"


def test_every_onnx_file_has_the_thresholds(tmp_path: Path) -> None:
    made = network()
    calibration = drawings(LEAST_IMAGES, 32, first=3000)
    graph = Graph(to_onnx(made, {"thresholds": "{}", "mean": "127.5"}), made, 32, 2, calibration)
    for target in (Onnx(), Fp16(), InsightFace(), Int8(), OpenCV()):
        target.write(graph, tmp_path)
        written = {one.key: one.value for one in onnx.load(tmp_path / target.files[0]).metadata_props}
        assert (written["thresholds"], written["mean"]) == ("{}", "0" if target.name == "opencv" else "127.5")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for target in chosen_targets("openvino,ncnn,litert,opencv,insightface,onnx"):
        for module in target.modules or ("onnxruntime",):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ExportError, match=rf"^{target.name}: needs a library that is missing \(.*\): pip install "):
            target.check(112)


@pytest.mark.slow
def test_an_operator_that_a_runtime_lacks_is_said(tmp_path: Path) -> None:
    """A real one: onnxruntime has no kernel of this name."""
    made = network()
    model: Any = onnx.load_from_string(graph_of(made).content)
    model.graph.node[3].op_type = "Betweenlinear"
    strange = Graph(bytes(model.SerializeToString()), made, 32)
    target = Onnx()
    target.write(strange, tmp_path)
    with pytest.raises(ExportError, match=r"^onnx: .*Betweenlinear") as caught:
        target.open(tmp_path, strange)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(place: Path, tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """A file whose description is of one network and whose weights are of another."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(place / "m.safetensors", framework="pt") as file:
        described = {**file.metadata()}
    described.pop("crc32")
    described["model"] = CONFIG.model_copy(update={"embedding_dim": 64}).model_dump_json()
    save_file(load_file(place / "m.safetensors"), tmp_path / "x.safetensors", described)
    assert (
        main([str(tmp_path / "x.safetensors"), str(tmp_path / "out"), "--to", "onnx", "--set", str(place / "set")]) == 1
    )
    assert "does not fit the network" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
