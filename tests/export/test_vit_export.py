"""An exported ViT is in a form that others take: OpenCV's classic engine at any batch, and ncnn (not run here).

What these need: no tensor of more than four dimensions, reshapes that name every size but the batch's, no shape
arithmetic; converters to LiteRT want the batch fixed as well.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from partialkd.commands.export import main
from partialkd.config import ModelConfig
from partialkd.models import build_model
from partialkd.models.saved import save_model
from partialkd.models.vit import HEADS, Attention, attention

CONFIG = ModelConfig(name="vit_tiny", width=0.125, depth=0.1, embedding_dim=16)
SIZE = 48
FORBIDDEN = {"Shape", "Expand", "Gather", "Unsqueeze", "Squeeze", "If", "Loop"}


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).uniform(-1, 1, (batch, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = build_model(CONFIG, SIZE)
    with torch.no_grad():
        model(torch.from_numpy(images(8)))  # statistics of BatchNorm
    folder = tmp_path_factory.mktemp("vit")
    save_model(folder / "model.safetensors", model.eval(), CONFIG, SIZE)
    return model, folder


def exported(network: tuple[nn.Module, Path], *options: str) -> Path:
    out = network[1] / "-".join(["out", *options])
    assert main([str(network[1] / "model.safetensors"), str(out), *options]) == 0
    return out / "model.onnx"


@pytest.fixture(scope="module")
def free(network: tuple[nn.Module, Path]) -> Path:
    return exported(network)


def embeddings(model: nn.Module, batch: int) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(images(batch))))


@pytest.mark.slow
def test_no_tensor_has_more_than_four_dimensions(free: Path) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(free)).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    assert {name for node in graph.node for name in node.output} - {"embeddings"} <= ranks.keys()
    assert max(ranks.values()) == 4
    assert not FORBIDDEN & {node.op_type for node in graph.node}
    shapes = {one.name: onnx.numpy_helper.to_array(one).tolist() for one in graph.initializer}
    assert {shapes[node.input[1]].index(-1) for node in graph.node if node.op_type == "Reshape"} == {0}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ENGINE_CLASSIC", "ENGINE_NEW"])
def test_opencv_takes_any_batch(network: tuple[nn.Module, Path], free: Path, engine: str) -> None:
    """One network, fed with batches of changing size."""
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2.dnn, engine):
        pytest.skip(f"OpenCV {cv2.__version__} has no choice of engines")
    loaded = cv2.dnn.readNetFromONNX(str(free), getattr(cv2.dnn, engine))
    for batch in (1, 8, 2):
        loaded.setInput(images(batch))
        np.testing.assert_allclose(loaded.forward(), embeddings(network[0], batch), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_batch_may_be_fixed(network: tuple[nn.Module, Path]) -> None:
    path = exported(network, "--batch", "2")
    values = [*onnx.load(path).graph.input, *onnx.load(path).graph.output]
    sizes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values]
    assert sizes == [[2, 3, SIZE, SIZE], [2, 16]]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (rows,) = session.run(None, {"images": images(2)})
    np.testing.assert_allclose(rows, embeddings(network[0], 2), rtol=1e-3, atol=1e-4)
    with pytest.raises(Exception, match=r"Got: 3 Expected: 2"):
        session.run(None, {"images": images(3)})


def test_a_batch_of_none_is_refused(network: tuple[nn.Module, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(network[1] / "model.safetensors"), "out", "--batch", "0"])
    assert "--batch must be in 1..4096, got 0" in capsys.readouterr().err


def test_attention_is_that_of_one_product_for_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As published, with one tensor (b, n, 3, 8, d); values and gradients, spelled out and through torch's own."""
    torch.manual_seed(0)
    layer, x = Attention(4 * HEADS, dropout=0.0).double(), torch.randn(2, 5, 4 * HEADS, dtype=torch.float64)
    queries, keys, values = layer.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(queries, keys, values)
    wanted = layer.proj(mixed.transpose(1, 2).flatten(2))
    gradients = torch.autograd.grad(wanted.square().sum(), list(layer.parameters()))
    for exporting in (False, True):
        monkeypatch.setattr("torch.compiler.is_exporting", lambda exporting=exporting: exporting)
        got = layer(x)
        torch.testing.assert_close(got, wanted)
        for found, right in zip(
            torch.autograd.grad(got.square().sum(), list(layer.parameters())), gradients, strict=True
        ):
            torch.testing.assert_close(found, right)
    torch.testing.assert_close(attention(queries, keys, values), mixed)
    assert layer(x[:0]).shape == (0, 5, 4 * HEADS)
