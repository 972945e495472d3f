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

from helpers.places import FACES
from partialkd.config import InputConfig, TeacherConfig
from partialkd.data.images.tensors import to_tensor
from partialkd.errors import TeacherError
from partialkd.teacher.network import open_teacher
from partialkd.teacher.onnx_network import OnnxNetwork

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
    output: str | None = None,
    mean: float = 127.5,
    std: float = 127.5,
) -> TeacherConfig:
    """images -> flat (b, 3072) -> y (b, 8), twin = 2 y; uint8 is cast first, and channels that come last put second.

    Optionally flat is an output too, and the weight lies in another file.
    """
    inside = TensorProto.FLOAT if kind == TensorProto.UINT8 else kind
    tensor = numpy_helper.from_array(weight.astype(helper.tensor_dtype_to_np_dtype(inside)), "w")
    if external is not None:
        data = tensor.raw_data
        (path.parent / external).write_bytes(data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", external), ("offset", "0"), ("length", str(len(data)))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    sizes = {"y": weight.shape[1], "twin": weight.shape[1], "flat": weight.shape[0]}
    order = [0, 3, 1, 2] if shape[3] == 3 else [0, 1, 2, 3]
    nodes = [
        helper.make_node("Cast", ["pixels:0"], ["cast"], to=inside),
        helper.make_node("Transpose", ["cast"], ["planes"], perm=order),
        helper.make_node("Flatten", ["planes"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
        helper.make_node("Add", ["y", "y"], ["twin"]),
    ]
    names = ["pixels:0", *(f"other{index}" for index in range(1, inputs))]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name in names],
        [helper.make_tensor_value_info(name, inside, (shape[0], sizes[name])) for name in outputs],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    accepts = InputConfig(size=32, mean=mean, std=std)
    return TeacherConfig(source="onnx", path=str(path), embedding_dim=8, input=accepts, output=output)


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


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
@pytest.mark.parametrize("shape", [("n", 32, 32, 3), (4, 32, 32, 3), ("n", "h", "w", 3), ("n", 3, 32, 32)])
def test_onnx_teacher_takes_pixels_with_the_channels_last(kind: int, shape: tuple[object, ...], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    weight = WEIGHT / 100  # float16 ends at 65504
    config = onnx_file(tmp_path / "t.onnx", shape, kind, weight=weight, mean=0.0, std=1.0)
    got = open_teacher(config, 32, CPU).embed(to_tensor(pixels, 32))
    planes = pixels.transpose(0, 3, 1, 2).reshape(6, -1).astype(np.float64)
    tolerance = 0.02 if kind == TensorProto.FLOAT16 else 1e-5
    torch.testing.assert_close(got.double(), torch.from_numpy(planes @ weight), rtol=tolerance, atol=300 * tolerance)


def test_onnx_output_is_chosen_by_name(tmp_path: Path) -> None:
    expected = pictures(3).flatten(1) @ torch.from_numpy(WEIGHT)
    prints = set()
    for output, factor in ((None, 1), ("y", 1), ("twin", 2)):
        outputs = ("flat", "y") if output is None else ("y", "flat", "twin")
        teacher = open_teacher(onnx_file(tmp_path / "t.onnx", outputs=outputs, output=output), 32, CPU)
        torch.testing.assert_close(teacher.embed(pictures(3)), factor * expected, rtol=1e-4, atol=2e-3)
        prints.add(teacher.fingerprint)
    assert len(prints) == 3
    with pytest.raises(ValueError, match=r'output must be left out with source = "none", got \'y\''):
        TeacherConfig(output="y")


@pytest.mark.faces
def test_a_published_teacher_that_takes_bytes_with_the_channels_last(tmp_path: Path) -> None:
    """SFace behind a cast and a transposition, its own output between others."""
    model = onnx.load(FACES / "sface_128d.onnx")
    graph, name, output = model.graph, model.graph.input[0].name, model.graph.output[0].name
    pixels = InputConfig(size=112, mean=0.0, std=1.0)
    faces = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 112, 112))).float()
    expected = OnnxNetwork(FACES / "sface_128d.onnx", pixels, 128, CPU)(faces)
    graph.node.insert(0, helper.make_node("Cast", ["bytes"], ["cast"], to=TensorProto.FLOAT))
    graph.node.insert(1, helper.make_node("Transpose", ["cast"], [name], perm=[0, 3, 1, 2]))
    graph.node.append(helper.make_node("Neg", [output], ["negative"]))
    graph.input[0].CopyFrom(helper.make_tensor_value_info("bytes", TensorProto.UINT8, (1, 112, 112, 3)))
    graph.output.append(helper.make_tensor_value_info("negative", TensorProto.FLOAT, (1, 128)))
    onnx.save(model, tmp_path / "t.onnx")
    with pytest.raises(TeacherError, match=r"name the one that is meant: teacher\.output"):
        OnnxNetwork(tmp_path / "t.onnx", pixels, 128, CPU)
    for chosen, sign in ((output, 1), ("negative", -1)):
        got = OnnxNetwork(tmp_path / "t.onnx", pixels, 128, CPU, chosen)(faces)
        torch.testing.assert_close(got, sign * expected, rtol=1e-4, atol=1e-4)


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
        ({"shape": ("n", 32, 3, 32)}, r"must be \(batch, 3, 32, 32\) or \(batch, 32, 32, 3\)"),
        (
            {"outputs": ("flat", "y"), "output": "z"},
            r"must have an output 'z' \(teacher.output\) of 8 numbers .*, got fl",
        ),
        (
            {"outputs": ("flat", "y"), "output": "flat"},
            r"an output 'flat' .* of 8 numbers an image .*, got flat .*3072",
        ),
        (
            {"outputs": ("y", "twin")},
            r"must have one output of 8 numbers .*; name the one that is meant: teacher.output",
        ),
        ({"kind": TensorProto.UINT8}, r"teacher.input.mean must be 0 and teacher.input.std 1 .*, got 127.5 and 127.5"),
        ({"weight": WEIGHT[:, :5]}, r"one output of 8 numbers an image \(teacher.embedding_dim\), got y"),
        ({"outputs": ("y", "y")}, "onnxruntime cannot load it|must have one output"),
        ({"inputs": 2}, "must have one input of float32, float16 or uint8, got pixels:0 .* other1"),
        (
            {"kind": TensorProto.DOUBLE},
            r"must have one input of float32, float16 or uint8, got pixels:0 tensor\(double\)",
        ),
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


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
@pytest.mark.parametrize("shape", [("n", 3, 32, 32), (4, 3, 32, 32), ("n", 32, 32, 3)])
def test_where_it_reads_and_writes_torchs_memory_it_computes_the_same(
    kind: int, shape: tuple[object, ...], tmp_path: Path
) -> None:
    """The calls that CUDA takes, on the CPU; 6 images are no whole number of batches of 4."""
    whole = kind == TensorProto.UINT8
    config = onnx_file(tmp_path / "t.onnx", shape, kind, mean=0.0 if whole else 127.5, std=1.0 if whole else 127.5)
    network = OnnxNetwork(tmp_path / "t.onnx", config.input, 8, CPU)
    assert not network.session.on_device
    images = pictures(6) * 127.5 + 127.5 if whole else pictures(6)
    torch.testing.assert_close(network.on_device(images), network(images), rtol=1e-3, atol=1e-3)
    assert network.on_device(images).dtype == torch.float32
