"""Targets of export: each compared in its own runtime, what does not hold is not written, and the layer is named.

What needs a library that is not installed is skipped, saying so; `make edge` has them all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from helpers.edge_cases import CONFIG, Collapsed, drawings, graph_of, network, weights_of, write_set
from helpers.places import ROOT
from partialkd.config import ModelConfig
from partialkd.export.base import ExportError, Graph, Target
from partialkd.export.edge import fitted
from partialkd.export.int8 import LEAST_IMAGES, Int8
from partialkd.export.layers import activations, faulty_layer
from partialkd.export.onnx_targets import Fp16
from partialkd.export.parity import Judge, Parity, torch_run
from partialkd.export.targets import TARGETS
from partialkd.models.network import Network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made() -> Network:
    return network()


@pytest.fixture(scope="module")
def graph(made: Network) -> Graph:
    return graph_of(made, calibration=drawings(LEAST_IMAGES, 32, first=3000))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set."""
    folder = tmp_path_factory.mktemp("edge")
    write_set(folder / "set")
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


@pytest.mark.slow
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
@pytest.mark.parametrize("name", ["onnx", "fp16", "int8", "openvino", "opencv"])
def test_a_file_may_take_a_fixed_number_of_pictures(name: str, made: Network, graph: Graph, tmp_path: Path) -> None:
    """It refuses others, and is run on any number with repeats that are dropped."""
    target, fixed = there(name), replace(graph, batch=2)
    target.write(fixed, tmp_path)
    pictures = drawings(5, 32, first=50)
    bar = {"fp32": 1e-5, "fp16": 1e-4, "int8": 0.01}[target.precision]
    rows = target.running(tmp_path, fixed)(pictures)
    assert cosines(torch_run(made)(pictures), rows).min() > 1 - bar
    if name != "opencv":  # which takes what comes
        with pytest.raises(ExportError, match=f"^{name}: "):
            target.open(tmp_path, fixed)(pictures)


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opencv", "openvino", "ncnn", "litert", "fp16", "int8"])
def test_a_vit_is_taken_too(name: str, tmp_path: Path) -> None:
    """No reshape of five dimensions is left in it."""
    target = there(name)
    made = network(ModelConfig(name="vit_tiny", width=0.125, depth=0.1, embedding_dim=16), 48)
    graph = graph_of(made, 48, drawings(LEAST_IMAGES, 48, first=3000))
    target.write(graph, tmp_path)
    pictures = drawings(4, 48)
    bar = {"fp32": 1e-5, "fp16": 1e-4, "int8": 0.02}[target.precision]
    assert cosines(torch_run(made)(pictures), target.open(tmp_path, graph)(pictures)).min() > 1 - bar


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "ncnn", "litert", "opencv", "insightface"])
def test_a_target_reports_nothing_and_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    """Without a network (each connection is an error that ends it), in a home that stays empty."""
    there(name, 112)
    home, files = tmp_path / "home", tmp_path / "files"
    home.mkdir()
    files.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "XDG_"))}
    environment = {**kept, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", USED, name, str(files)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert [path for path in home.rglob("*") if path.is_file()] == []


USED = """
import os, socket, sys
assert "onnxruntime" not in sys.modules
from pathlib import Path
def refuse(*_, **__): os._exit(7)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from helpers.edge_cases import CONFIG, drawings, graph_of, network
from partialkd.export.targets import TARGETS
target, folder = TARGETS[sys.argv[1]](), Path(sys.argv[2])
target.check(112)
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
graph = graph_of(network(CONFIG, 112), 112)
target.write(graph, folder)
target.open(folder, graph)(drawings(1, 112))
print([name for name in ("openvino_telemetry",) if sys.modules.get(name)])
"""


# ---------------------------------------------------------------------------------------------- what is caught


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_int8_keeps_layers_in_float_by_its_rule(made: Network, graph: Graph, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    target = Int8()
    target.write(graph, tmp_path)
    assert target.kept_float == []
    everything = rounded_weights(tmp_path / "model_int8.onnx")
    assert everything == len(weights_of(graph))
    monkeypatch.setitem(__import__("partialkd.export.int8", fromlist=["x"]).LEAST_COSINE, "int8", 1.0)
    target.write(graph, tmp_path)
    assert 1 <= len(target.kept_float) <= len(weights_of(graph)) // 2
    assert rounded_weights(tmp_path / "model_int8.onnx") == everything - len(target.kept_float)


@pytest.mark.slow
def test_int8_that_misses_the_bar_on_the_set_keeps_more_in_float(graph: Graph, tmp_path: Path) -> None:
    target = Int8()
    target.write(graph, tmp_path)
    kept = [len(target.kept_float)]
    while target.exacter():
        target.write(graph, tmp_path)
        kept.append(len(target.kept_float))
    assert kept[:4] == [0, 1, 2, 4]
    assert kept[-2:] == [max(kept)] * 2  # more than half of the layers: the same again, and that is the end
    assert max(kept) <= len(weights_of(graph)) // 2


@pytest.mark.slow
@pytest.mark.parametrize("missed", ["cosine_least", "tar"])
def test_whichever_bar_is_missed_more_layers_are_kept_in_float(missed: str, graph: Graph, tmp_path: Path) -> None:
    """Until it holds; a judge that no less than three layers in float please."""
    target, held = Int8(), Parity(1.0, 1.0, 1.0, tar=0.5, tar_network=0.5, accuracy=None, accuracy_network=None)
    far = replace(held, **{missed: 0.4})
    judge = SimpleNamespace(compare=lambda *_: held if len(target.kept_float) >= 3 else far)
    assert fitted(target, graph, judge, tmp_path) == held  # type: ignore[arg-type]
    assert len(target.kept_float) == 4


def rounded_weights(path: Path) -> int:
    """How many weights of a file are int8."""
    stored = onnx.load(path).graph.initializer
    return sum(one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1 for one in stored)
