"""ncnn: a .param and a .bin, by pnnx, with weights in float32 or float16.

A file takes one picture: batches are run one by one. `input` and `output` are called in0 and out0.
Arithmetic is told to be of the precision of the weights; ncnn's own choice depends on the processor.
Errors: ExportError, as base.py says; operators that pnnx leaves to PyTorch are named.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.export.base import ExportError, Graph, Run, Target, one_by_one, planes
from partialkd.export.graphs import with_batch

_STRANGE = re.compile(r"^(?:pnnx|aten|prim|nn|F|torch|Tensor)\.[\w.]+|^(?:aten|prim)::\w+", re.MULTILINE)


class Ncnn(Target):
    """ncnn.Net, from Python's package ncnn."""

    modules = ("ncnn", "pnnx")
    packages = ("ncnn", "pnnx")
    runtime = "ncnn"
    least = "ncnn 1.0.20230223"
    takes = "float32 (3, S, S) RGB, (pixel - 127.5) / 127.5, one picture; blobs in0 and out0"
    any_batch = False

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.name = "ncnn" if precision == "fp32" else f"ncnn_{precision}"
        stem = f"model_{self.name}"
        self.files = (f"{stem}.param", f"{stem}.bin")

    def write(self, graph: Graph, folder: Path) -> None:
        size = graph.image_size
        with tempfile.TemporaryDirectory() as work, self.saying("convert"):
            (Path(work) / "model.onnx").write_bytes(with_batch(graph.content, 1))
            names = [f"ncnnparam={folder / self.files[0]}", f"ncnnbin={folder / self.files[1]}"]
            half = f"fp16={int(self.precision == 'fp16')}"
            command = [str(_pnnx()), "model.onnx", f"inputshape=[1,3,{size},{size}]", half, *names]
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode or not (folder / self.files[0]).is_file():
                raise ExportError((done.stderr or done.stdout).strip()[-200:] or f"pnnx ended with {done.returncode}")
            if strange := sorted(set(_STRANGE.findall((folder / self.files[0]).read_text()))):
                raise ExportError(f"operators that it does not have: {', '.join(strange)}")

    def open(self, folder: Path, graph: Graph, threads: int = 1) -> Run:  # noqa: ARG002 (one signature for all)
        import ncnn

        with self.saying("load"):
            net: Any = ncnn.Net()
            half = self.precision == "fp16"
            net.opt.use_vulkan_compute = False
            net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
            net.opt.use_bf16_storage = False
            net.opt.num_threads = threads
            failed = [name for name, load in zip(self.files, (net.load_param, net.load_model), strict=True)
                      if load(str(folder / name)) != 0]  # fmt: skip
            if failed:
                raise ExportError(f"{failed[0]}: ncnn does not load it")

        def run(pictures: np.ndarray) -> np.ndarray:
            with self.saying("run"):
                pixels = planes(pictures)[0]  # ncnn's matrix is a view of it
                matrix, extractor = ncnn.Mat(pixels), net.create_extractor()
                extractor.input("in0", matrix)
                status, rows = extractor.extract("out0")
                if status != 0:
                    raise ExportError(f"ncnn stops with {status}")
                return np.array(rows).reshape(1, -1)

        return one_by_one(run)


def _pnnx() -> Path:
    found = find_spec("pnnx")
    if found is None or found.origin is None:
        raise ExportError("pnnx is not there")
    return Path(found.origin).parent / "pnnx"
