"""YuNet, by OpenCV's FaceDetectorYN: the only module that imports OpenCV.

Errors: ConfigError where OpenCV is missing or too old, DataError naming the file where it is not such a detector.
Source: Wu, Peng, Yu: YuNet (Machine Intelligence Research 20, 2023); the model files are OpenCV Zoo's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from partialkd.align.detector import Face, shrunk_to
from partialkd.errors import ConfigError, DataError

NMS, MOST = 0.3, 5000  # overlap of two boxes of one face; candidates looked at


class YuNet:
    """Looks at an image whose longer side is at most `longest` pixels."""

    def __init__(self, model: Path, score: float, longest: int) -> None:
        self._cv2 = _opencv()
        self.longest, self.model = longest, model
        try:
            self._detector = self._cv2.FaceDetectorYN.create(str(model), "", (64, 64), score, NMS, MOST)
        except self._cv2.error as error:
            raise DataError(f"{model}: not a YuNet detector that this OpenCV reads: {_first_line(error)}") from error

    def find(self, image: np.ndarray) -> list[Face]:
        height, width = image.shape[:2]
        factor = shrunk_to(width, height, self.longest)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        looked_at = Image.fromarray(image)
        if size != (width, height):
            looked_at = looked_at.resize(size, Image.Resampling.BOX, reducing_gap=None)
        self._detector.setInputSize(size)
        try:
            _, rows = self._detector.detect(np.ascontiguousarray(np.array(looked_at)[:, :, ::-1]))
        except self._cv2.error as error:
            raise DataError(f"{self.model}: not a YuNet detector: {_first_line(error)}") from error
        back = np.array([width / size[0], height / size[1]])
        return [_face(row, back) for row in sorted([] if rows is None else rows, key=lambda row: -float(row[14]))]


def _face(row: np.ndarray, back: np.ndarray) -> Face:
    """A row: x, y, width, height, five points, score. YuNet names the eyes from the person's side: right eye first."""
    corner, extent = row[0:2] * back, row[2:4] * back
    return Face(np.concatenate([corner, corner + extent]), row[4:14].reshape(5, 2) * back, float(row[14]))


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ConfigError("a YuNet detector needs OpenCV: pip install 'partialkd[align]'") from error
    if not hasattr(cv2, "FaceDetectorYN"):
        raise ConfigError(f"a YuNet detector needs OpenCV 5 or newer, got {cv2.__version__}")
    return cv2


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
