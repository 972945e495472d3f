"""SCRFD and RetinaFace as InsightFace ships them: ONNX files with nine outputs.

For each of the strides 8, 16 and 32, and two anchors at every place, a file gives scores, distances of the box's
sides and offsets of the five landmarks, both in strides. The input is (1, 3, S, S), RGB, (pixel - 127.5) / 128; the
image is put into its upper left corner.
Errors: DataError naming the file where its outputs are others.
Source: Guo et al., SCRFD (arXiv:2105.04714); Deng et al., RetinaFace (arXiv:1905.00641); InsightFace's model zoo for
the order of outputs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from partialkd.align.detector import Face
from partialkd.errors import DataError
from partialkd.models.onnx_session import OnnxSession

STRIDES, ANCHORS = (8, 16, 32), 2
OVERLAP = 0.4  # of two boxes of one face
_WIDTHS = (1, 4, 10)  # numbers per anchor: score, box, landmarks


class Scrfd:
    """A detector of InsightFace's."""

    def __init__(self, model: Path, score: float, longest: int) -> None:
        self.model, self.score = model, score
        self._session = OnnxSession(model, str(model))
        self._input = self._session.inputs[0]
        self._outputs = [output.name for output in self._session.outputs]
        if len(self._session.inputs) != 1 or len(self._outputs) != len(STRIDES) * len(_WIDTHS):
            rule = f"a SCRFD or RetinaFace file has one input and {len(STRIDES) * len(_WIDTHS)} outputs"
            raise DataError(f"{model}: {rule}, got {len(self._session.inputs)} and {len(self._outputs)}")
        fixed = self._input.shape[2] if len(self._input.shape) == 4 else None
        side = fixed if isinstance(fixed, int) else longest
        self.side = -(-side // STRIDES[-1]) * STRIDES[-1]

    def find(self, image: np.ndarray) -> list[Face]:
        height, width = image.shape[:2]
        factor = self.side / max(width, height)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        canvas = np.zeros((self.side, self.side, 3), dtype=np.float32)
        canvas[: size[1], : size[0]] = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        blob = ((canvas - 127.5) / 128.0).transpose(2, 0, 1)[None]
        found = self._session.run(self._outputs, {self._input.name: np.ascontiguousarray(blob)})
        scores, boxes, points = self._decoded(found)
        keep = _best(boxes, scores)
        back = np.array([width / size[0], height / size[1]])
        return [Face(boxes[k] * np.tile(back, 2), points[k] * back, float(scores[k])) for k in keep]

    def _decoded(self, found: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> scores (n,), boxes (n, 4), landmarks (n, 5, 2) above the bar, in pixels of the canvas."""
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for level, stride in enumerate(STRIDES):
            count = (self.side // stride) ** 2 * ANCHORS
            arrays = [found[level + len(STRIDES) * kind] for kind in range(len(_WIDTHS))]
            for array, numbers in zip(arrays, _WIDTHS, strict=True):
                if array.size != count * numbers:
                    rule = f"output of stride {stride} must have {count} x {numbers} numbers"
                    raise DataError(f"{self.model}: {rule}, got {array.shape}")
            score, box, point = (a.reshape(count, n) for a, n in zip(arrays, _WIDTHS, strict=True))
            places = _anchors(self.side // stride, stride)
            above = score[:, 0] >= self.score
            box, point, places = box[above] * stride, point[above] * stride, places[above]
            corners = np.concatenate([places - box[:, :2], places + box[:, 2:]], axis=1)
            parts.append((score[above, 0], corners, places[:, None] + point.reshape(-1, 5, 2)))
        scores, boxes, points = (np.concatenate(kind) for kind in zip(*parts, strict=True))
        return scores, boxes, points


def _anchors(cells: int, stride: int) -> np.ndarray:
    """(cells^2 x 2, 2): where each anchor lies, row by row."""
    y, x = np.divmod(np.arange(cells * cells), cells)
    return np.repeat(np.stack([x, y], axis=1) * float(stride), ANCHORS, axis=0)


def _best(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Indices of boxes that no better one overlaps, by falling score."""
    keep: list[int] = []
    order = list(np.argsort(-scores, kind="stable"))
    areas = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
    while order:
        first, *rest = order
        keep.append(int(first))
        others = np.array(rest, dtype=np.int64)
        shared = np.minimum(boxes[first, 2:], boxes[others, 2:]) - np.maximum(boxes[first, :2], boxes[others, :2]) + 1
        common = np.prod(np.maximum(0.0, shared), axis=1)
        order = list(others[common / (areas[first] + areas[others] - common) <= OVERLAP])
    return keep
