"""Bring a face to the ArcFace template by a similarity transform of its five landmarks.

Coordinates are (x, y) in pixels; the centre of the first pixel is (0, 0), as in OpenCV. Landmarks: left eye in the
image, right eye, tip of the nose, left corner of the mouth, right corner.
Source: the least-squares similarity is Umeyama's (IEEE TPAMI 13(4), 1991, equations 39 to 43); the template is the
one that ArcFace (arXiv:1801.07698) publishes for 112 x 112 pixels. Differs from the usual warp in one point: an image
that shrinks is averaged over areas first, so that fine texture does not become noise.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 112
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation, one scale and shift that bring points (n, 2) nearest to others (n, 2) -> (2, 3).

    Raises ValueError if the source points are one and the same.
    """
    mean_source, mean_target = source.mean(0), target.mean(0)
    centred_source, centred_target = source - mean_source, target - mean_target
    variance = float((centred_source**2).sum() / len(source))
    if not variance > 0:
        raise ValueError("the landmarks are one and the same point")
    left, singular, right = np.linalg.svd(centred_target.T @ centred_source / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right)) or 1.0])  # a face is not mirrored
    linear = (left * signs) @ right * float(singular @ signs) / variance
    return np.concatenate([linear, (mean_target - linear @ mean_source)[:, None]], axis=1)


def to_template(landmarks: np.ndarray, size: int = SIDE) -> np.ndarray:
    """The transform (2, 3) of a photograph with these landmarks (5, 2) to an aligned face of `size` pixels a side."""
    return similarity(landmarks, (TEMPLATE + 0.5) * (size / SIDE) - 0.5)


def moved(points: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Points (n, 2) after a transform (2, 3)."""
    return points @ transform[:, :2].T + transform[:, 2]


def aligned(image: np.ndarray, landmarks: np.ndarray, size: int = SIDE) -> np.ndarray:
    """Photograph (H, W, 3) uint8 and landmarks (5, 2) -> the aligned face (size, size, 3) uint8; outside is black."""
    return warped(image, to_template(landmarks, size), size)


def warped(image: np.ndarray, transform: np.ndarray, size: int) -> np.ndarray:
    """What an image (H, W, 3) uint8 becomes by a similarity transform (2, 3) -> (size, size, 3) uint8."""
    inverse = np.linalg.inv(np.concatenate([transform, [[0.0, 0.0, 1.0]]]))[:2]
    shrinks = max(1, int(np.sqrt(abs(np.linalg.det(inverse[:, :2])))))  # source pixels per pixel of the result, a side
    picture = Image.fromarray(image)
    if shrinks > 1:
        picture = picture.reduce(shrinks)
    # Pillow's coordinates have the first pixel's centre at one half.
    shift = inverse[:, 2] + 0.5 - inverse[:, :2] @ np.array([0.5, 0.5])
    matrix = np.concatenate([inverse[:, :2], shift[:, None]], axis=1) / shrinks
    face = picture.transform((size, size), Image.Transform.AFFINE, matrix.ravel().tolist(), Image.Resampling.BICUBIC)
    return np.array(face)
