"""OpenVINO: an .xml and a .bin, with weights in float32.

On a processor that computes in bfloat16 OpenVINO does so unless it is told otherwise, and then differs by 6e-2 from
the network: a program must set INFERENCE_PRECISION_HINT to f32, as is done here.
Files are read by its runtime, not by its converter (`convert_model`), which reports to its maker without having been
asked: the package that does so is kept from being imported here at all.
Errors: ExportError, as base.py says.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.export.base import INPUT, Graph, Run, Target, planes
from partialkd.export.graphs import with_batch

REPORTER = "openvino_telemetry"
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


class OpenVINO(Target):
    """openvino.Core().compile_model."""

    name = "openvino"
    files = ("model_openvino.xml", "model_openvino.bin")
    modules = ("openvino",)
    packages = ("openvino",)
    runtime = "openvino"
    least = "openvino 2023.0.2"
    takes = "float32 (b, 3, S, S) RGB, (pixel - 127.5) / 127.5; compile it with INFERENCE_PRECISION_HINT f32"

    def check(self, image_size: int) -> None:
        sys.modules.setdefault(REPORTER, None)  # type: ignore[arg-type]  # what `import` takes for "is not there"
        super().check(image_size)

    def write(self, graph: Graph, folder: Path) -> None:
        with self.saying("convert"):
            ov = library()
            content = with_batch(graph.content, graph.batch)
            ov.save_model(ov.Core().read_model(content), str(folder / self.files[0]), compress_to_fp16=False)

    def open(self, folder: Path, graph: Graph, threads: int = 1) -> Run:  # noqa: ARG002 (one signature for all)
        with self.saying("load"):
            core = library().Core()
            settings = {**EXACT, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
            compiled = core.compile_model(str(folder / self.files[0]), "CPU", settings)

        def run(pictures: np.ndarray) -> np.ndarray:
            with self.saying("run"):
                return np.array(compiled({INPUT: planes(pictures)})[0])

        return run

    def version(self) -> str:
        return str(library().__version__)


def library() -> Any:
    """Import OpenVINO without what reports: where that package cannot be imported, OpenVINO goes on without it."""
    sys.modules.setdefault(REPORTER, None)  # type: ignore[arg-type]  # what `import` takes for "is not there"
    import openvino

    return openvino
