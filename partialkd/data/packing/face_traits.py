"""Draw the traits of a procedural face: those of the identity, and nuisance that differs from picture to picture.

Face coordinates: x to the right, y down, the origin between eyes and nose, 1 = half the height of the head. Angles in
radians, light and exposure in natural-log units, blur in 1/56 of the picture, noise in grey levels. Every trait is
uniform in its range and independent of the others. A presence (glasses, beard, ...) counts above a threshold that
stands where it is drawn.
`identity_traits` depends on (seed, identity) only, `nuisance_traits` on the generator it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

Traits = Mapping[str, float]

IDENTITY: dict[str, tuple[float, float]] = {
    "cheek": (0.62, 0.86), "jaw": (0.60, 0.95), "chin": (0.88, 1.10), "chin_width": (0.12, 0.42),
    "forehead": (0.82, 1.02), "ear_size": (0.10, 0.22), "ear_y": (-0.12, 0.12), "ear_out": (0.00, 0.10),
    "eye_y": (-0.20, -0.02), "eye_gap": (0.25, 0.41), "eye_width": (0.10, 0.18), "eye_height": (0.40, 0.80),
    "eye_tilt": (-0.30, 0.30), "iris": (0.55, 0.95), "iris_hue": (0.0, 1.0), "lid": (0.0, 1.0), "bags": (0.0, 1.0),
    "brow_gap": (0.11, 0.26), "brow_length": (0.13, 0.25), "brow_width": (0.025, 0.085), "brow_tilt": (-0.35, 0.35),
    "brow_arch": (0.0, 0.09), "brow_dark": (0.35, 0.95),
    "nose_y": (0.13, 0.33), "nose_width": (0.07, 0.19), "nose_bridge": (0.02, 0.07), "nose_tip": (0.3, 1.0),
    "mouth_drop": (0.16, 0.30), "mouth_width": (0.15, 0.33), "lip_upper": (0.015, 0.075), "lip_lower": (0.02, 0.095),
    "lip_red": (0.1, 0.9), "lip_bow": (0.0, 0.6), "mouth_curve": (-0.05, 0.05),
    "skin": (0.0, 1.0), "skin_warmth": (-1.0, 1.0), "blush": (0.0, 0.5),
    "hair_hue": (0.0, 1.0), "hairline": (-0.82, -0.36), "hair_volume": (0.02, 0.28), "hair_length": (-0.6, 1.2),
    "parting": (-0.7, 0.7), "fringe": (-0.25, 0.30), "curl": (0.0, 1.0), "bald": (0.0, 1.0),
    "beard": (0.0, 1.0), "moustache": (0.0, 1.0), "wrinkles": (0.0, 1.0), "folds": (0.0, 1.0),
    "mole_x": (-0.5, 0.5), "mole_y": (-0.5, 0.7), "mole": (0.0, 1.0), "freckles": (0.0, 1.0),
}  # fmt: skip

NUISANCE: dict[str, tuple[float, float]] = {
    "yaw": (-0.55, 0.55), "pitch": (-0.30, 0.30), "roll": (-0.22, 0.22), "scale": (0.86, 1.14),
    "shift_x": (-0.09, 0.09), "shift_y": (-0.09, 0.09),
    "light_angle": (0.0, 2 * math.pi), "light": (0.1, 0.75), "exposure": (-0.55, 0.45), "gamma": (-0.35, 0.35),
    "tint_red": (-0.16, 0.16), "tint_blue": (-0.16, 0.16),
    "smile": (-0.05, 0.12), "open": (-0.12, 0.12), "brow_lift": (-0.04, 0.06), "eyes_open": (0.45, 1.15),
    "gaze": (-0.35, 0.35),
    "blur": (-0.6, 1.1), "noise": (0.0, 10.0), "quality": (45.0, 95.0),
    "glasses": (0.0, 1.0), "scarf": (0.0, 1.0), "blob": (0.0, 1.0), "hat": (0.0, 1.0),
    "blob_x": (-0.8, 0.8), "blob_y": (-0.8, 0.9), "blob_size": (0.12, 0.36), "combed": (-0.08, 0.08),
}  # fmt: skip


def identity_traits(seed: int, identity: int) -> dict[str, float]:
    """Draw what stays the same in every picture of one identity."""
    return _draw(IDENTITY, np.random.default_rng([seed, 1, identity]))


def nuisance_traits(rng: np.random.Generator) -> dict[str, float]:
    """Draw what changes from picture to picture; `rng` is seeded by (seed, identity, image)."""
    return _draw(NUISANCE, rng)


def _draw(ranges: dict[str, tuple[float, float]], rng: np.random.Generator) -> dict[str, float]:
    low, high = np.array(list(ranges.values())).T
    return dict(zip(ranges, rng.uniform(low, high).tolist(), strict=True))
