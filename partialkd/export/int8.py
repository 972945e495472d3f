"""int8 for onnxruntime: post-training static quantisation, weights per channel, ranges from the training set's images.

What is quantised: convolutions and matrix products (Conv, Gemm, MatMul), weights symmetric per output channel in seven
of the eight bits, inputs uint8 per tensor with the range seen over the calibration images; QuantizeLinear and
DequantizeLinear stand in the graph ("QDQ"). Everything else computes in float32. Seven bits: with eight, sums of two
products overflow on x86 processors without VNNI, and cosines fall from 0.999 to 0.989 (a small MobileFaceNet).

What stays in float32, the rule: where the bar is missed, the layers whose input loses most by rounding
(|x - rounded x| / |x| over the calibration images, the largest first) are put back: 1, 2, 4, 8, ... of them, until
every calibration image's cosine to the trained network is at least 0.99, then until all bars hold on the set that the
target is checked on; at most half of the layers. Which they are is noted.
Errors: ExportError, as base.py says; fewer than `LEAST_IMAGES` calibration images.
Source: Jacob et al., arXiv:1712.05877 (the arithmetic); onnxruntime.quantization (the tool).
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.export.base import INPUT, LEAST_COSINE, OUTPUT, ExportError, Graph, planes
from partialkd.export.onnx_targets import Onnx
from partialkd.models.onnx_session import OnnxSession, onnxruntime_part

LEAST_IMAGES = 64
OPERATORS = ("Conv", "Gemm", "MatMul")
_BATCH = 16


class Int8(Onnx):
    """model_int8.onnx."""

    name = "int8"
    files = ("model_int8.onnx",)
    precision = "int8"
    least = "onnxruntime 1.20.1"
    calibrated = True

    def __init__(self) -> None:
        self.kept_float: list[str] = []  # nodes of the graph that was written last
        self._least_kept = 0

    def converted(self, graph: Graph) -> bytes:
        pictures = graph.calibration
        if pictures is None or len(pictures) < LEAST_IMAGES:
            found = 0 if pictures is None else len(pictures)
            raise ExportError(f"calibration wants {LEAST_IMAGES} images of the training set or more, got {found}")
        with tempfile.TemporaryDirectory() as work:
            return self._fitted(graph, pictures, Path(work))

    def exacter(self) -> bool:
        wanted = 2 * len(self.kept_float) or 1
        grows, self._least_kept = wanted > self._least_kept, wanted
        return grows

    def notes(self) -> dict[str, Any]:
        return {"layers_in_float": self.kept_float}

    def _fitted(self, graph: Graph, pictures: np.ndarray, work: Path) -> bytes:
        """Quantise, with as many layers in float as the bar wants; the last trial where none suffices."""
        prepared = _prepared(graph.content, work)
        wanted = _unit(OnnxSession(graph.content, self.name), pictures)
        content = self._quantised(prepared, pictures, work, [])
        worst: list[str] = []
        missed = lambda: _least(wanted, _unit(OnnxSession(content, self.name), pictures)) < LEAST_COSINE["int8"]
        least = self._least_kept
        while len(self.kept_float) < least or missed():
            worst = worst or by_loss(content, prepared, pictures)
            while least > len(worst) // 2:
                least //= 2
            count = max(2 * len(self.kept_float) or 1, least)
            if count > len(worst) // 2:
                break
            content = self._quantised(prepared, pictures, work, worst[:count])
        return content

    def _quantised(self, prepared: bytes, pictures: np.ndarray, work: Path, in_float: list[str]) -> bytes:
        tools = onnxruntime_part("quantization")
        self.kept_float = in_float
        (work / "float.onnx").write_bytes(prepared)
        with _quiet():
            tools.quantize_static(
                str(work / "float.onnx"),
                str(work / "int8.onnx"),
                _Reader(pictures),
                quant_format=tools.QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                per_channel=True,
                reduce_range=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                nodes_to_exclude=in_float,
                calibration_cache_path=str(work / "ranges.json"),
                extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
            )
        return (work / "int8.onnx").read_bytes()


class _Reader:
    """Calibration images as onnxruntime's tool asks for them: one batch after the other, then None."""

    def __init__(self, pictures: np.ndarray) -> None:
        self.pictures, self.at = pictures, 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = self.pictures[self.at : self.at + _BATCH]
        self.at += _BATCH
        return {INPUT: planes(batch)} if len(batch) else None


def by_loss(quantised: bytes, prepared: bytes, pictures: np.ndarray) -> list[str]:
    """Name the quantised layers, those first whose input loses most by being rounded."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(quantised).graph
    numbers = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    rounding = {n.input[0]: n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[1] in numbers}
    plain = onnx.load_from_string(prepared).graph
    layers = {n.name: n.input[0] for n in plain.node if n.op_type in OPERATORS and n.input[0] in rounding}
    values = _values(prepared, sorted(set(layers.values())), pictures[:_BATCH])
    losses = {}
    for name, tensor in layers.items():
        scale, zero = (numbers[one].astype(np.float64) for one in rounding[tensor].input[1:3])
        x = values[tensor].astype(np.float64)
        back = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
        losses[name] = float(np.linalg.norm(x - back)) / max(float(np.linalg.norm(x)), 1e-30)
    return sorted(losses, key=lambda name: -losses[name])


def _values(content: bytes, tensors: list[str], pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Run a graph -> these of its tensors."""
    import onnx
    from onnx import TensorProto, helper

    model: Any = onnx.load_from_string(content)
    there = {value.name for value in model.graph.output} | {INPUT}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name not in there
    )
    given, asked = planes(pictures), [name for name in tensors if name != INPUT]
    found = OnnxSession(model.SerializeToString(), "the network").run(asked, {INPUT: given}) if asked else []
    return {INPUT: given, **dict(zip(asked, found, strict=True))}


def _prepared(content: bytes, work: Path) -> bytes:
    """Infer shapes and optimise, as the tool wants it."""
    (work / "given.onnx").write_bytes(content)
    with _quiet():
        preprocess = onnxruntime_part("quantization.shape_inference").quant_pre_process
        preprocess(str(work / "given.onnx"), str(work / "prepared.onnx"), skip_symbolic_shape=True)
    return (work / "prepared.onnx").read_bytes()


def _unit(session: OnnxSession, pictures: np.ndarray) -> np.ndarray:
    parts = [session.run([OUTPUT], {INPUT: planes(pictures[k : k + 64])})[0] for k in range(0, len(pictures), 64)]
    rows = np.concatenate(parts).reshape(len(pictures), -1)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30))


def _least(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float((ours * theirs).sum(axis=1).min())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tool's advice."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
