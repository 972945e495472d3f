"""SCRFD's nine outputs, from an ONNX file made here: its outputs are constants, so that what is decoded is known.

The published files were not at hand; the layout is that of InsightFace's model zoo.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from partialkd.align.detector import Face, the_one_meant
from partialkd.align.open import detector_maker
from partialkd.align.scrfd import Scrfd
from partialkd.errors import DataError

SIDE = 64
POINTS = np.array([(-6.0, -6.0), (6.0, -6.0), (0.0, 0.0), (-5.0, 6.0), (5.0, 6.0)])


def write(path: Path, faces: list[tuple[int, int, int, float]], side: int = SIDE, outputs: int = 9) -> Path:
    """A detector that always finds these: (stride, column, row, score); boxes reach 10 pixels to every side."""
    arrays: list[np.ndarray] = []
    for width in (1, 4, 10):
        for stride in (8, 16, 32):
            cells = side // stride
            array = np.zeros((cells * cells * 2, width), dtype=np.float32)
            for at, column, row, score in faces:
                if at == stride:
                    place = (row * cells + column) * 2
                    array[place] = score if width == 1 else (10 / stride if width == 4 else (POINTS / stride).ravel())
            arrays.append(array)
    names = [f"o{k}" for k in range(len(arrays))][:outputs]
    zero = helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0)
    none = helper.make_node("Mul", ["sum", "nothing"], ["zero"])
    nodes = [zero, none] + [helper.make_node("Add", [f"c{k}", "zero"], [name]) for k, name in enumerate(names)]
    constants = [numpy_helper.from_array(a, f"c{k}") for k, a in enumerate(arrays)]
    constants.append(numpy_helper.from_array(np.zeros((), dtype=np.float32), "nothing"))
    graph = helper.make_graph(
        nodes, "scrfd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    onnx.save(model, path)
    return path


def test_boxes_and_landmarks_are_in_pixels_of_the_photograph(tmp_path: Path) -> None:
    """Twice as large as what the detector sees, and not square."""
    detector = Scrfd(write(tmp_path / "d.onnx", [(8, 3, 2, 0.9)]), 0.5, 640)
    (face,) = detector.find(np.zeros((2 * SIDE - 30, 2 * SIDE, 3), dtype=np.uint8))
    centre = np.array([3 * 8, 2 * 8]) * 2.0
    np.testing.assert_allclose(face.box, [*(centre - 20), *(centre + 20)], atol=1e-4)
    np.testing.assert_allclose(face.landmarks, centre + 2 * POINTS, atol=1e-4)
    assert face.score == pytest.approx(0.9)


def test_of_overlapping_boxes_the_best_stays(tmp_path: Path) -> None:
    found = [(8, 3, 2, 0.7), (16, 2, 1, 0.9), (8, 7, 7, 0.6), (32, 1, 1, 0.4)]
    detector = Scrfd(write(tmp_path / "d.onnx", found), 0.5, 640)
    faces = detector.find(np.zeros((SIDE, SIDE, 3), dtype=np.uint8))
    assert [round(face.score, 3) for face in faces] == [0.9, 0.6]


def test_no_face_is_an_empty_list(tmp_path: Path) -> None:
    detector = Scrfd(write(tmp_path / "d.onnx", []), 0.5, 640)
    assert detector.find(np.zeros((SIDE, SIDE, 3), dtype=np.uint8)) == []


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"eight\.onnx: a SCRFD or RetinaFace file has one input and 9 outputs, got 1 and 8"
    ):
        detector_maker(write(tmp_path / "eight.onnx", [], outputs=8))
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(DataError, match=r"text\.onnx: not a face detector"):
        detector_maker(tmp_path / "text.onnx")
    with pytest.raises(DataError, match=r"absent\.onnx: no such file"):
        detector_maker(tmp_path / "absent.onnx")


def face_at(x: float, y: float, half: float) -> Face:
    return Face(np.array([x - half, y - half, x + half, y + half]), POINTS, 0.9)


def test_the_face_meant_is_large_and_near_the_middle() -> None:
    small_in_the_middle, large_at_the_edge, larger_near = face_at(50, 50, 5), face_at(5, 5, 12), face_at(60, 55, 10)
    assert the_one_meant([small_in_the_middle, large_at_the_edge], 100, 100) is small_in_the_middle
    assert the_one_meant([small_in_the_middle, larger_near], 100, 100) is larger_near
