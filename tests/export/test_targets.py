"""Targets of export: each compared in its own runtime, what does not hold is not written, and the layer is named.

What needs a library that is not installed is skipped, saying so; `make edge` has them all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from helpers.edge_cases import CONFIG, drawings, graph_of, network, write_pictures, write_set
from partialkd.commands.export import main
from partialkd.export.base import ExportError, Graph, Target
from partialkd.export.int8 import LEAST_IMAGES, Int8
from partialkd.export.layers import activations, faulty_layer
from partialkd.export.onnx_targets import Fp16, Onnx
from partialkd.export.parity import Judge, torch_run
from partialkd.export.targets import TARGETS, chosen_targets
from partialkd.models.network import Network
from partialkd.models.saved import save_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made() -> Network:
    return network()


@pytest.fixture(scope="module")
def graph(made: Network) -> Graph:
    return graph_of(made, calibration=drawings(LEAST_IMAGES, 32, first=3000))


@pytest.fixture(scope="module")
def place(made: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network file, a set, images to calibrate with."""
    folder = tmp_path_factory.mktemp("edge")
    save_model(folder / "m.safetensors", made, CONFIG, 32)
    write_set(folder / "set")
    write_pictures(folder / "faces")
    return folder


def there(name: str, size: int = 32) -> Target:
    target = TARGETS[name]()
    try:
        target.check(size)
    except ExportError as error:
        pytest.skip(str(error))
    return target


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("insightface", "litert")])
def test_a_target_gives_the_networks_embeddings(name: str, made: Network, graph: Graph, tmp_path: Path) -> None:
    """At batches of changing size, those of one among them."""
    target = there(name)
    target.write(graph, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(target.files)
    run = target.open(tmp_path, graph)
    for count in (1, 6, 3):
        pictures = drawings(count, 32, first=50)
        bar = {"fp32": 1e-5, "fp16": 1e-4, "int8": 0.01}[target.precision]
        assert cosines(torch_run(made)(pictures), run(pictures)).min() > 1 - bar


@pytest.mark.slow
def test_litert_gives_the_networks_embeddings(made: Network, graph: Graph, tmp_path: Path) -> None:
    target = there("litert")
    target.write(graph, tmp_path)
    pictures = drawings(3, 32)
    assert cosines(torch_run(made)(pictures), target.open(tmp_path, graph)(pictures)).min() > 1 - 1e-5


@pytest.mark.slow
def test_insightface_takes_the_file_and_normalises_itself(tmp_path: Path) -> None:
    """The real package: its router calls it a recogniser, and get_feat of BGR pictures gives our embeddings."""
    target = there("insightface", 112)
    made = network(CONFIG, 112)
    graph = graph_of(made, 112)
    target.write(graph, tmp_path)
    run = target.open(tmp_path, graph)
    for count in (1, 4):
        pictures = drawings(count, 112)
        assert cosines(torch_run(made)(pictures), run(pictures)).min() > 1 - 1e-5
    with pytest.raises(ExportError, match=r"^insightface: takes networks of 112 pixels a side or more, .* has 32"):
        target.check(32)


@pytest.mark.parametrize("engine", ["ENGINE_CLASSIC", "ENGINE_NEW"])
def test_opencv_takes_pixels_as_they_are(engine: str, made: Network, graph: Graph, tmp_path: Path) -> None:
    """Both engines, batches of changing size; and a file without the normalisation would be wrong."""
    cv2 = pytest.importorskip("cv2")
    target: Any = there("opencv")
    target.write(graph, tmp_path)
    content = (tmp_path / target.files[0]).read_bytes()
    run = target.opened(content, engine=getattr(cv2.dnn, engine))
    for count in (1, 5, 2):
        pictures = drawings(count, 32)
        assert cosines(torch_run(made)(pictures), run(pictures)).min() > 1 - 1e-5
    bare = target.opened(graph.content, engine=getattr(cv2.dnn, engine))
    assert cosines(torch_run(made)(pictures), bare(pictures)).max() < 0.999


# ---------------------------------------------------------------------------------------------- what is caught


def zeroed(content: bytes, weight: str) -> bytes:
    """The graph with one of its weights gone, if it has it."""
    model: Any = onnx.load_from_string(content)
    for one in model.graph.initializer:
        if one.name == weight:
            one.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(one)), weight))
    return bytes(model.SerializeToString())


def weights_of(graph: Graph) -> dict[str, str]:
    """Weight of each convolution and matrix product -> the module that its node is of."""
    found = {}
    for node in onnx.load_from_string(graph.content).graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            scopes = next(one.value for one in node.metadata_props if "name_scopes" in one.key)
            found[node.input[1]] = scopes
    return found


class Collapsed(Onnx):
    """A converter that loses a weight."""

    def __init__(self, weight: str) -> None:
        self.weight = weight

    def converted(self, graph: Graph) -> bytes:
        return zeroed(graph.content, self.weight)


def test_a_planted_collapse_is_caught_wherever_it_is(made: Network, graph: Graph, place: Path, tmp_path: Path) -> None:
    """In each layer in turn, and the layer that is named is the one. Residual branches change little: also caught."""
    judge = Judge(made, place / "set", 32)
    planted = weights_of(graph)
    assert len(planted) > 15
    for weight, scopes in planted.items():
        target = Collapsed(weight)
        target.write(graph, tmp_path)
        parity = judge.compare(target.open(tmp_path, graph), target)
        assert parity.problem(target), weight
        fault = faulty_layer(made, target, graph, judge.pictures[:4])
        assert f"'{fault.layer}'" in scopes, (weight, fault)
        assert fault.before < 1e-4 < fault.error


def test_embeddings_that_are_all_the_same_are_caught(made: Network, graph: Graph, place: Path) -> None:
    """However near to the network's their mean is; and so is a network that is constant itself."""
    judge = Judge(made, place / "set", 32)
    constant = judge.ours.mean(axis=0)
    parity = judge.compare(lambda pictures: np.tile(constant, (len(pictures), 1)), Int8())
    assert parity.spread < 1e-6
    assert parity.problem(Int8()) is not None
    near = lambda pictures: torch_run(made)(pictures) * 1e-3 + 100 * constant
    assert "collapse" in str(judge.compare(near, _Lax()).problem(_Lax()))
    with pytest.raises(ExportError, match="it has collapsed"):
        Judge(_Constant(), place / "set", 32)


class _Lax(Int8):
    """A target whose cosines would always do."""


class _Constant(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), 32)


@pytest.fixture(autouse=True)
def lax_bar(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "all_the_same" in request.node.name:
        monkeypatch.setitem(__import__("partialkd.export.base", fromlist=["x"]).LEAST_COSINE, "int8", 0.0)


def test_half_precision_that_overflows_names_its_layer(place: Path, tmp_path: Path) -> None:
    """A real collapse: maps beyond 65504, which float32 does not mind."""
    made = network()
    names = [name for name, x in made.named_parameters() if name.endswith("bn.weight")]
    wide = names[6].removesuffix(".weight")
    with torch.no_grad():
        made.get_submodule(wide).weight *= 3e6
        made.get_submodule(wide).bias *= 3e6
    graph = graph_of(made)
    kept = activations(made, drawings(4, 32))
    assert np.abs(kept[wide]).max() > 65504
    fault = faulty_layer(made, Fp16(), graph, drawings(4, 32))
    assert fault.layer == wide
    assert fault.of > 15


def test_int8_keeps_layers_in_float_by_its_rule(made: Network, graph: Graph, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    target = Int8()
    target.write(graph, tmp_path)
    assert target.kept_float == []
    size = (tmp_path / "model_int8.onnx").stat().st_size
    monkeypatch.setitem(__import__("partialkd.export.int8", fromlist=["x"]).LEAST_COSINE, "int8", 1.0)
    target.write(graph, tmp_path)
    assert 1 <= len(target.kept_float) <= len(weights_of(graph)) // 2
    assert (tmp_path / "model_int8.onnx").stat().st_size > size


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_writes_what_holds_and_says_what_does_not(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = next(iter(weights_of(graph_of(network()))))
    monkeypatch.setitem(TARGETS, "fp16", lambda: _named("fp16", first))
    options = ["--to", "onnx,fp16", "--set", str(place / "set")]
    (tmp_path / "model_fp16.onnx").write_bytes(b"of an earlier export")
    assert main([str(place / "m.safetensors"), str(tmp_path), *options]) == 1
    said = capsys.readouterr()
    assert "| onnx" in said.out
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


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for target in chosen_targets("openvino,ncnn,litert,opencv,insightface"):
        for module in target.modules:
            monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(ExportError, match=rf"^{target.name}: needs a library that is missing \(.*\): pip install "):
            target.check(112)


def test_an_operator_that_a_runtime_lacks_is_said(made: Network, graph: Graph, tmp_path: Path) -> None:
    """A real one: onnxruntime has no kernel of this name."""
    model: Any = onnx.load_from_string(graph.content)
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
