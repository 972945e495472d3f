"""Every target of export: one row each. To add one, write a Target (base.py) and put it here."""

from __future__ import annotations

from collections.abc import Callable

from partialkd.errors import ConfigError
from partialkd.export.base import Target
from partialkd.export.int8 import Int8
from partialkd.export.litert import LiteRT
from partialkd.export.ncnn import Ncnn
from partialkd.export.onnx_targets import Fp16, InsightFace, Onnx
from partialkd.export.opencv import OpenCV
from partialkd.export.openvino import OpenVINO

TARGETS: dict[str, Callable[[], Target]] = {
    "onnx": Onnx,
    "fp16": Fp16,
    "int8": Int8,
    "openvino": OpenVINO,
    "litert": LiteRT,
    "ncnn": lambda: Ncnn("fp32"),
    "ncnn_fp16": lambda: Ncnn("fp16"),
    "opencv": OpenCV,
    "insightface": InsightFace,
}


def chosen_targets(names: str) -> list[Target]:
    """Targets of a list with commas; ConfigError naming one that there is not."""
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in wanted if name not in TARGETS]
    if unknown or not wanted:
        raise ConfigError(f"--to must name targets ({', '.join(TARGETS)}), got {', '.join(unknown) or 'none'}")
    return [TARGETS[name]() for name in wanted]
