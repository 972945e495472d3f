"""OpenCV's dnn module: an ONNX file with the normalisation inside, which takes pixels as they are.

`cv2.dnn.blobFromImage(picture, 1.0, (S, S), (0, 0, 0), swapRB=True)` makes its input of a BGR picture. The file is run
with the engine that OpenCV chooses; tests try both.
Errors: ExportError, as base.py says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from partialkd.export.base import INPUT, Graph, Run, Target
from partialkd.export.graphs import with_batch
from partialkd.storage.atomic_files import write_bytes

MIDDLE = 127.5


class OpenCV(Target):
    """cv2.dnn.readNetFromONNX."""

    name = "opencv"
    files = ("model_opencv.onnx",)
    modules = ("cv2",)
    packages = ("opencv-python-headless",)
    runtime = "opencv-python-headless"
    least = "OpenCV 4.5.5"
    takes = "float32 (b, 3, S, S) RGB, pixels 0..255: the normalisation is inside"

    def write(self, graph: Graph, folder: Path) -> None:
        with self.saying("convert"):
            content = with_batch(graph.content, graph.batch)
            write_bytes(folder / self.files[0], with_normalisation(content))

    def open(self, folder: Path, graph: Graph, threads: int = 1) -> Run:  # noqa: ARG002 (one signature for all)
        return self.opened((folder / self.files[0]).read_bytes(), threads)

    def opened(self, content: bytes, threads: int = 1, engine: int | None = None) -> Run:
        """Open the content of such a file with one of OpenCV's engines."""
        import cv2

        with self.saying("load"):
            given = np.frombuffer(content, np.uint8)
            net = cv2.dnn.readNetFromONNX(given) if engine is None else cv2.dnn.readNetFromONNX(given, engine)

        def run(pictures: np.ndarray) -> np.ndarray:
            with self.saying("run"):
                cv2.setNumThreads(threads)  # of the whole process
                net.setInput(cv2.dnn.blobFromImages(list(pictures[..., ::-1]), swapRB=True))
                return np.array(net.forward())

        return run

    def version(self) -> str:
        import cv2

        return str(cv2.__version__)


def with_normalisation(content: bytes) -> bytes:
    """Put (x - 127.5) / 127.5 before an ONNX graph."""
    import onnx
    from onnx import TensorProto, helper

    model: Any = onnx.load_from_string(content)
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["normalised_images" if name == INPUT else name for name in node.input]
    constants = {"pixel_mean": MIDDLE, "pixel_factor": 1 / MIDDLE}
    graph.initializer.extend(helper.make_tensor(name, TensorProto.FLOAT, [1], [x]) for name, x in constants.items())
    first = [
        helper.make_node("Sub", [INPUT, "pixel_mean"], ["centred_images"], name="normalise_mean"),
        helper.make_node("Mul", ["centred_images", "pixel_factor"], ["normalised_images"], name="normalise_std"),
    ]
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    described = {"mean": "0", "std": "1"}
    for entry in model.metadata_props:
        entry.value = described.get(entry.key, entry.value)
    return bytes(model.SerializeToString())
