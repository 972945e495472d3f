"""What a face detector owes, and which of the faces in an image is meant.

A detector takes a photograph (H, W, 3) uint8 RGB of any size and gives faces in its pixels, best first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Face:
    """One face: box (x1, y1, x2, y2), landmarks (5, 2) in the order of the template, score in [0, 1]."""

    box: np.ndarray
    landmarks: np.ndarray
    score: float

    @property
    def area(self) -> float:
        """Square pixels of the box."""
        return float(max(0.0, self.box[2] - self.box[0]) * max(0.0, self.box[3] - self.box[1]))


class Detector(Protocol):
    """Finds faces. One detector is used by one thread at a time."""

    def find(self, image: np.ndarray) -> list[Face]:
        """(H, W, 3) uint8 RGB -> faces with their landmarks in pixels of this image, by falling score."""


def the_one_meant(faces: list[Face], width: int, height: int) -> Face:
    """The face of an image that is to show one person: large and near the middle.

    The face with the most area less twice the squared distance of its centre from the image's centre. Source: the
    rule of InsightFace's alignment scripts.
    """
    middle = np.array([width / 2, height / 2])

    def merit(face: Face) -> float:
        centre = np.array([face.box[0] + face.box[2], face.box[1] + face.box[3]]) / 2
        return face.area - 2.0 * float(((centre - middle) ** 2).sum())

    return max(faces, key=merit)


def shrunk_to(width: int, height: int, longest: int) -> float:
    """The factor that brings the longer side of an image to at most `longest` pixels; never above one."""
    return min(1.0, longest / max(width, height))
