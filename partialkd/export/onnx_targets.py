"""The targets that onnxruntime runs: plain, in half precision, and as InsightFace's packages want it.

fp16: weights and arithmetic in float16, input and output float32. InsightFace: no normalisation in the file, which its
`model_zoo.get_model` takes for a recogniser with mean and standard deviation 127.5; its images are BGR, and it brings
them to RGB itself.
Source of what InsightFace looks for: deepinsight/insightface, python-package, model_zoo (2.1).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from partialkd.export.base import INPUT, OUTPUT, ExportError, Graph, Run, Target, planes
from partialkd.export.graphs import with_batch
from partialkd.models.onnx_session import OnnxSession, onnxruntime_part
from partialkd.storage.atomic_files import write_bytes

OWN_MEAN = 127.5


class Onnx(Target):
    """As it is."""

    name = "onnx"
    files: tuple[str, ...] = ("model.onnx",)
    least = "onnxruntime 1.17 (IR 9, opset 20)"

    def write(self, graph: Graph, folder: Path) -> None:
        with self.saying("convert"):
            content = self.converted(graph)
            write_bytes(folder / self.files[0], with_batch(content, graph.batch))

    def converted(self, graph: Graph) -> bytes:
        """Return the file's content."""
        return graph.content

    def open(self, folder: Path, graph: Graph, threads: int = 1) -> Run:  # noqa: ARG002 (one signature for all)
        with self.saying("load"):
            session = OnnxSession((folder / self.files[0]).read_bytes(), self.files[0], threads=threads)

        def run(pictures: np.ndarray) -> np.ndarray:
            with self.saying("run"):
                return session.run([OUTPUT], {INPUT: planes(pictures)})[0]

        return run


class Fp16(Onnx):
    """Half precision: half the size; faster where the processor computes in it, as most do not."""

    name = "fp16"
    files = ("model_fp16.onnx",)
    precision = "fp16"
    least = "onnxruntime 1.17.0"

    def converted(self, graph: Graph) -> bytes:
        import onnx

        model = onnx.load_from_string(graph.content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that are rounded to zero: the parity check sees what that does
            tool = onnxruntime_part("transformers.float16")
            half = tool.convert_float_to_float16(model, keep_io_types=True)
        return bytes(half.SerializeToString())


class InsightFace(Onnx):
    """For insightface.model_zoo.get_model."""

    name = "insightface"
    files = ("model_insightface.onnx",)
    modules = ("insightface",)
    packages = ("insightface",)
    runtime = "insightface"
    least = "insightface 2.1"
    takes = "a BGR picture, as cv2.imread gives it: get_feat() does the rest"
    least_size = 112

    def open(self, folder: Path, graph: Graph, threads: int = 1) -> Run:  # noqa: ARG002 (it takes what it wants)
        with self.saying("load"):
            from insightface.model_zoo import get_model

            model = get_model(str(folder / self.files[0]), providers=["CPUExecutionProvider"])
            if type(model).__name__ != "ArcFaceONNX":
                raise ExportError(f"get_model takes it for a {type(model).__name__}, not for a recogniser")
            if (model.input_mean, model.input_std) != (OWN_MEAN, OWN_MEAN):
                found = f"{model.input_mean} and {model.input_std}"
                raise ExportError(f"get_model would feed it with mean and std {found} instead of {OWN_MEAN}")

        def run(pictures: np.ndarray) -> np.ndarray:
            with self.saying("run"):
                return np.asarray(model.get_feat(list(np.ascontiguousarray(pictures[..., ::-1]))))

        return run
