"""onnxruntime: what it leaves behind (nothing), and its errors in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from partialkd.errors import CheckpointError
from partialkd.models.onnx_session import OnnxSession


def relu(shape: tuple[object, ...] = ("n", 2), inside: object = None) -> bytes:
    """x -> y = max(x, 0), optionally through a Reshape to a shape that does not fit."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    constants = []
    if inside is not None:
        constants = [helper.make_tensor("s", TensorProto.INT64, [1], [inside])]
        nodes = [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("Relu", ["r"], ["y"])]
        ends[1] = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


USED = """
import sys
import numpy as np
from partialkd.models.onnx_session import OnnxSession
session = OnnxSession(sys.stdin.buffer.read(), "x.onnx")
print(session.run(["y"], {"x": np.array([[-1.0, 2.0]], dtype=np.float32)})[0].tolist())
"""


@pytest.mark.slow
def test_it_reports_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Not a file in the user's home or cache: onnxruntime would leave a device id and what it is to send."""
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", USED]
    done = subprocess.run(command, env=environment, input=relu(), capture_output=True, timeout=120, check=True)
    assert done.stdout.decode().strip() == "[[0.0, 2.0]]"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_onnxruntime_says_becomes_one_line_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no protobuf")
    with pytest.raises(CheckpointError, match=r"^x\.onnx: onnxruntime cannot load it: .{1,320}$"):
        OnnxSession(tmp_path / "x.onnx", "x.onnx")
    with pytest.raises(CheckpointError, match=r"^x\.onnx: onnxruntime cannot run it: .*Got: 3 Expected: 2.*$"):
        OnnxSession(relu(), "x.onnx").run(["y"], {"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(CheckpointError, match=r"^x\.onnx: onnxruntime cannot run it: .*Reshape.*$"):
        OnnxSession(relu(inside=7), "x.onnx").run(["y"], {"x": np.zeros((1, 2), np.float32)})


def test_memory_that_it_cannot_get_stays_a_lack_of_memory() -> None:
    """So that whoever advises on memory sees it as such. More bytes than there are addresses."""
    node = helper.make_node("ConstantOfShape", ["t"], ["y"])
    given = helper.make_tensor_value_info("t", TensorProto.INT64, [1])
    graph = helper.make_graph([node], "g", [given], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = OnnxSession(made.SerializeToString(), "x.onnx")
    with pytest.raises(MemoryError, match=r"^x\.onnx: "):
        session.run(["y"], {"t": np.array([1 << 46], dtype=np.int64)})
