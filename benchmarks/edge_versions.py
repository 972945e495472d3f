"""Older versions of the runtimes that exported files are for: which of them open a file and give the same embeddings.

python benchmarks/edge_versions.py OUT --out edge_versions.json         (OUT: what launch/export.py --to has written)

Each version is installed into a folder of its own (--installer: an "install" command of pip or uv) beside a numpy of
its time, and run in a process that looks there first. Pictures are random; figures are the least cosine over eight of
them, one by one, to model.onnx in the onnxruntime of this environment. What fails is there in the runtime's own words.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NUMPY = "numpy==1.26.4"
VERSIONS = {
    "onnxruntime": ("1.15.1", "1.16.3", "1.17.0", "1.20.1"),
    "openvino": ("2023.0.2", "2023.3.0", "2024.0.0", "2025.0.0"),
    "opencv-python-headless": ("4.5.5.64", "4.8.1.78", "4.10.0.84", "4.13.0.92"),
    "ncnn": ("1.0.20230223", "1.0.20240102", "1.0.20250503"),
    "ai-edge-litert": ("1.0.1", "1.2.0", "2.0.3"),
}
FILES = {
    "onnxruntime": ("model.onnx", "model_fp16.onnx", "model_int8.onnx"),
    "openvino": ("model_openvino.xml",),
    "opencv-python-headless": ("model_opencv.onnx",),
    "ncnn": ("model_ncnn.param", "model_ncnn_fp16.param"),
    "ai-edge-litert": ("model.tflite",),
}
ALSO = {"onnxruntime": ("flatbuffers",), "ai-edge-litert": ("flatbuffers",)}
Run = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=VERSIONS, action="append", help="these packages (default: all)")
    parser.add_argument("--installer", default=f"{sys.executable} -m pip install --quiet")
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--open", metavar="PACKAGE", help=argparse.SUPPRESS)  # what a process of a version does
    args = parser.parse_args()
    pictures = np.random.default_rng(0).integers(0, 256, (8, args.size, args.size, 3), np.uint8)
    if args.open:
        files = [args.folder / name for name in FILES[args.open] if (args.folder / name).exists()]
        own = {path.name: embedded(OPEN[args.open], path, pictures) for path in files}
        print(json.dumps(own))
        return
    wanted = embedded(OPEN["onnxruntime"], args.folder / "model.onnx", pictures)
    found = []
    for package in args.only or VERSIONS:
        for version in VERSIONS[package]:
            with tempfile.TemporaryDirectory() as place:
                names = [f"{package}=={version}", NUMPY, *ALSO.get(package, ())]
                command = [*shlex.split(args.installer), "--no-deps", "--target", place, *names]
                installed = subprocess.run(command, capture_output=True, text=True, check=False)
                if installed.returncode:
                    rows: Any = {"not_installed": installed.stderr.strip().splitlines()[-1]}
                else:
                    rows = opened(package, args.folder, args.size, place)
            figures = {name: least_cosine(wanted, one) for name, one in rows.items()}
            found.append({"package": package, "version": version, "files": figures})
            print(json.dumps(found[-1]), flush=True)
    if args.out:
        import torch  # not beside packages of another time
        from measure import machine

        about = {**machine(torch.device("cpu")), "numpy": NUMPY, "reference": "model.onnx in onnxruntime"}
        facts = {**about, "tried": found}
        args.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def opened(package: str, folder: Path, size: int, place: str) -> Any:
    """Run the files of a package in a process with this folder of packages -> rows by file, or what went wrong."""
    environment = {**os.environ, "PYTHONPATH": place, "ORT_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, __file__, str(folder), "--size", str(size), "--open", package]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = done.stderr.strip().splitlines()
    return {"fails": said[-1] if said else f"ends with {done.returncode}"}


def embedded(opening: Callable[[Path], Run], path: Path, pictures: np.ndarray) -> Any:
    """Run a file -> its rows, or what it fails with."""
    try:
        run = opening(path)
        return [np.asarray(run(picture[None]), np.float64).reshape(-1).tolist() for picture in pictures]
    except Exception as error:  # each runtime has errors of its own
        return " ".join(str(error).split())[-200:]


def least_cosine(wanted: list[list[float]], rows: Any) -> Any:
    if isinstance(rows, str):
        return rows
    a, b = np.array(wanted), np.array(rows)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def planes(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(((picture.astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2), np.float32)


def onnxruntime_of(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda picture: session.run(["embeddings"], {"images": planes(picture)})[0]


def openvino_of(path: Path) -> Run:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    from openvino.runtime import Core

    compiled = Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda picture: compiled([planes(picture)])[compiled.output(0)]


def opencv_of(path: Path) -> Run:
    import cv2

    net = cv2.dnn.readNetFromONNX(str(path))

    def run(picture: np.ndarray) -> np.ndarray:
        net.setInput(cv2.dnn.blobFromImage(np.ascontiguousarray(picture[0, ..., ::-1]), 1.0, swapRB=True))
        return np.array(net.forward())

    return run


def ncnn_of(path: Path) -> Run:
    import ncnn

    net = ncnn.Net()
    half = "fp16" in path.name
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise ValueError("does not load")

    def run(picture: np.ndarray) -> np.ndarray:
        pixels, extractor = planes(picture)[0], net.create_extractor()
        extractor.input("in0", ncnn.Mat(pixels))
        return np.array(extractor.extract("out0")[1])

    return run


def litert_of(path: Path) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    given, wanted = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(picture: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given, planes(picture))
        interpreter.invoke()
        return np.array(interpreter.get_tensor(wanted))

    return run


OPEN: dict[str, Callable[[Path], Run]] = {
    "onnxruntime": onnxruntime_of,
    "openvino": openvino_of,
    "opencv-python-headless": opencv_of,
    "ncnn": ncnn_of,
    "ai-edge-litert": litert_of,
}


if __name__ == "__main__":
    main()
