"""Teachers from ONNX files: any batch, half precision, weights beside the file; which files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from partialkd.config import InputConfig, TeacherConfig
from partialkd.errors import TeacherError
from partialkd.teacher.network import open_teacher

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
WEIGHT = np.random.default_rng(1).standard_normal((3 * 32 * 32, 8)).astype(np.float32)


def pictures(count: int, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def onnx_file(
    path: Path,
    shape: tuple[object, ...] = ("n", 3, 32, 32),
    kind: int = TensorProto.FLOAT,
    outputs: tuple[str, ...] = ("y",),
    weight: np.ndarray = WEIGHT,
    external: str | None = None,
    inputs: int = 1,
) -> TeacherConfig:
    """images -> flat (b, 3072) -> y (b, 8); optionally flat is an output too, and the weight lies in another file."""
    tensor = numpy_helper.from_array(weight.astype(helper.tensor_dtype_to_np_dtype(kind)), "w")
    if external is not None:
        data = tensor.raw_data
        (path.parent / external).write_bytes(data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", external), ("offset", "0"), ("length", str(len(data)))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    sizes = {"y": weight.shape[1], "flat": weight.shape[0]}
    nodes = [helper.make_node("Flatten", ["pixels:0"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    names = ["pixels:0", *(f"other{index}" for index in range(1, inputs))]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name in names],
        [helper.make_tensor_value_info(name, kind, (shape[0], sizes[name])) for name in outputs],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return TeacherConfig(source="onnx", path=str(path), embedding_dim=8, input=InputConfig(size=32))


@pytest.mark.parametrize("shape", [("n", 3, 32, 32), (4, 3, 32, 32), ("n", "c", "h", "w")])
@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_onnx_teacher_takes_any_batch(shape: tuple[object, ...], count: int, tmp_path: Path) -> None:
    teacher = open_teacher(onnx_file(tmp_path / "t.onnx", shape), 32, CPU)
    got = teacher.embed(pictures(count))
    assert got.shape == (count, 8)
    torch.testing.assert_close(got, pictures(count).flatten(1) @ torch.from_numpy(WEIGHT), rtol=1e-4, atol=1e-3)


def test_onnx_teacher_in_half_precision_or_with_several_outputs(tmp_path: Path) -> None:
    expected = pictures(3).flatten(1) @ torch.from_numpy(WEIGHT)
    half = open_teacher(onnx_file(tmp_path / "h.onnx", kind=TensorProto.FLOAT16), 32, CPU).embed(pictures(3))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=2e-2, atol=0.3)
    both = open_teacher(onnx_file(tmp_path / "b.onnx", outputs=("flat", "y")), 32, CPU).embed(pictures(3))
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-3)


def test_onnx_external_data_stays_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    config = onnx_file(tmp_path / "in" / "t.onnx", external="w.bin")
    first = open_teacher(config, 32, CPU)
    torch.testing.assert_close(
        first.embed(pictures(2)), pictures(2).flatten(1) @ torch.from_numpy(WEIGHT), rtol=1e-4, atol=1e-3
    )
    (tmp_path / "in" / "w.bin").write_bytes((2 * WEIGHT).tobytes())
    assert open_teacher(config, 32, CPU).fingerprint != first.fingerprint  # the .onnx itself is the same
    with pytest.raises(TeacherError, match=r"t\.onnx: onnxruntime cannot load it: .*escapes"):
        open_teacher(onnx_file(tmp_path / "in" / "t.onnx", external="../w.bin"), 32, CPU)


def test_onnx_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.onnx"
    cases = [
        ({"shape": ("n", 3, 112, 112), "weight": np.ones((37632, 8))}, "pixels:0.*(teacher.input.size).*112, 112"),
        ({"shape": ("n", 32, 32, 3)}, r"must be \(batch, 3, 32, 32\)"),
        ({"weight": WEIGHT[:, :5]}, r"one output of 8 numbers an image \(teacher.embedding_dim\), got y"),
        ({"outputs": ("y", "y")}, "onnxruntime cannot load it|must have one output"),
        ({"inputs": 2}, "must have one input of float32 or float16, got pixels:0 .* other1"),
        ({"kind": TensorProto.DOUBLE}, r"must have one input of float32 or float16, got pixels:0 tensor\(double\)"),
        ({"weight": np.full_like(WEIGHT, np.nan)}, "NaN"),
        ({"weight": np.zeros_like(WEIGHT)}, "zeros"),
    ]
    for changes, message in cases:
        with pytest.raises(TeacherError, match=message):
            open_teacher(onnx_file(path, **changes), 32, CPU)  # type: ignore[arg-type]
    path.write_bytes(b"no protobuf")
    config = TeacherConfig(source="onnx", path=str(path), embedding_dim=8)
    with pytest.raises(TeacherError, match=r"t\.onnx: cannot be read as ONNX"):
        open_teacher(config, 32, CPU)
    path.unlink()
    with pytest.raises(TeacherError, match="no such file"):
        open_teacher(config, 32, CPU)


def test_onnx_threads_are_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    session = onnxruntime.InferenceSession

    def recording(path: str, options: onnxruntime.SessionOptions, **rest: object) -> onnxruntime.InferenceSession:
        asked.append(options.intra_op_num_threads)
        return session(path, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recording)
    config = onnx_file(tmp_path / "t.onnx")
    open_teacher(config, 32, CPU)
    torch.set_num_threads(2)
    open_teacher(config, 32, CPU)
    assert asked == [1, 2]
    assert onnx.load(tmp_path / "t.onnx").graph.input[0].name == "pixels:0"
