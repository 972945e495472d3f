"""Look at a face again where it stands upright: landmarks of turned faces become those of upright ones.

Detectors place the landmarks of a face that is turned by 20 degrees less well than those of an upright one. A small
cut in which the eyes are level, by the landmarks found so far, is looked at twice more. Measured on 40 crops of
PubFig turned by up to 20 degrees, with YuNet: mean error at 112 pixels from 5.1 to 3.9 pixels (upright from the
start: 3.7).
"""

from __future__ import annotations

import numpy as np

from partialkd.align.detector import Detector, Face
from partialkd.align.template import SIDE, TEMPLATE, moved, similarity, warped

CUT = 160  # pixels a side of the cut, in which the face has the size of the template
LOOKS = 2


class Upright:
    """A detector whose faces are looked at again."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def find(self, image: np.ndarray) -> list[Face]:
        return [self._again(image, face) for face in self.detector.find(image)]

    def _again(self, image: np.ndarray, face: Face) -> Face:
        """The face with better landmarks; as it is where the second look does not find it."""
        middle = (CUT - 1) / 2
        for _ in range(LOOKS):
            transform = similarity(face.landmarks, TEMPLATE - (SIDE - 1) / 2 + middle)
            found = self.detector.find(warped(image, transform, CUT))
            if not found:
                break
            nearest = min(found, key=lambda one: float(np.abs(one.landmarks.mean(0) - middle).sum()))
            back = np.linalg.inv(np.concatenate([transform, [[0.0, 0.0, 1.0]]]))[:2]
            face = Face(face.box, moved(nearest.landmarks, back), face.score)
        return face
