"""Change pixels (n, 3, S, S) float32 in 0..255 by parameters of each image -> a new tensor.

`ready` turns drawn parameters (n,), on the host, into the arrays that an operation needs beside the pixels; the
operations take them as tensors on the device of the pixels, so that those of a whole batch can travel together
(`carry.py`). Each image by itself: a result does not depend on what else is in the batch. Results are not rounded to
whole grey levels but where that is the operation (`posterise`); they are cut off at 0 and 255.
brightness, contrast, saturation, sharpness, posterise, solarise, autocontrast, crop, rotate, shear and low_resolution
are Pillow's of those names up to its rounding, hue is that of HSV, blur a Gaussian cut off at three standard
deviations. Beyond an edge its pixels repeat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from partialkd.data.images.tensors import resize, to_grey

Values = dict[str, np.ndarray]


class Ready(NamedTuple):
    """An operation with everything it needs beside the pixels."""

    operation: str  # a function of this module
    arrays: Values  # float32, int64 or bool; to be given as tensors on the device
    fixed: dict[str, Any]  # what the host itself needs to know


def ready(operation: str, values: Values, size: int) -> Ready:
    """Make an operation ready for images of `size` pixels per side. values: its drawn parameters, (n,) float64 each."""
    if operation in _MATRICES:
        across, down = _MATRICES[operation](**values)
        numbers = np.stack(np.broadcast_arrays(*across, *down), axis=1)  # (n, 6)
        return Ready("affine", {"matrix": numbers.reshape(-1, 2, 3).astype(np.float32)}, {})
    arrays, fixed = _PREPARED[operation](size, **values) if operation in _PREPARED else (values, {})
    narrow = {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in arrays.items()}
    return Ready(operation, narrow, fixed)


# ----------------------------------------------------------------------------------------------- colours


def brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Multiply grey levels; 0: black, 1: as it was."""
    return (pixels * _each(factor)).clamp_(0, 255)


def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Move away from (factor > 1) or towards the image's mean luma, a whole number as in Pillow."""
    mean = to_grey(pixels).mean((1, 2, 3), keepdim=True, dtype=torch.float64).round().float()
    return _between(mean, pixels, factor)


def saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """Move away from or towards grey; 0: grey, 1: as it was."""
    return _between(to_grey(pixels), pixels, factor)


def hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn colours along the colour circle of HSV; saturation and value stay."""
    high = pixels.amax(1)
    spread = high - pixels.amin(1)
    red, green, blue = pixels.unbind(1)
    by = spread.clamp(min=1e-6)  # grey pixels have no hue: any will do
    sixth = torch.where(high == green, (blue - red) / by + 2, (red - green) / by + 4)
    sixth = torch.where(high == red, (green - blue) / by, sixth) + 6 * _each(turns)[:, 0]
    places = [torch.remainder(start + sixth, 6) for start in (5, 3, 1)]
    return torch.stack([high - spread * torch.minimum(at, 4 - at).clamp(0, 1) for at in places], 1)


def colour(
    pixels: Tensor,
    brightness_factor: Tensor,
    contrast_factor: Tensor,
    saturation_factor: Tensor,
    turns: Tensor,
) -> Tensor:
    """Change brightness, contrast, saturation and hue, one after the other."""
    changed = contrast(brightness(pixels, brightness_factor), contrast_factor)
    return hue(saturation(changed, saturation_factor), turns)


def posterise(pixels: Tensor, step: Tensor) -> Tensor:
    """Keep only multiples of `step`, 2 to the power of the bits that go."""
    step = _each(step)
    return (pixels.round() / step).floor_() * step


def solarise(pixels: Tensor, threshold: Tensor) -> Tensor:
    """Invert grey levels from the threshold on."""
    return torch.where(pixels < _each(threshold), pixels, 255 - pixels)


def autocontrast(pixels: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a channel of one level stays."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    return torch.where(high > low, (pixels - low) * (255 / (high - low)), pixels).clamp_(0, 255)


# ---------------------------------------------------------------------------------------------- sharpness


def sharpness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Sharpen; 0: smoothed by 3 x 3 (5 in the middle, 1 around, over 13), 1: as it was; the outermost pixels stay."""
    height, width = pixels.shape[2:]
    moved = [pixels[:, :, y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)]
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = (torch.stack(moved).sum(0) + 4 * moved[4]) / 13
    return _between(smooth, pixels, factor)


def blur(pixels: Tensor, weights: Tensor) -> Tensor:
    """Blur by weights (n, radius + 1) of the pixel itself and of those at distance 1, 2, ..."""
    return _blur_rows(_blur_rows(pixels, weights).mT, weights).mT


def _blur_rows(pixels: Tensor, weights: Tensor) -> Tensor:
    radius, width = weights.shape[1] - 1, pixels.shape[3]
    wide = pad(pixels, (radius, radius, 0, 0), mode="replicate")
    total = pixels * _each(weights[:, 0])
    for offset in range(1, radius + 1):
        both = wide[..., radius - offset :][..., :width] + wide[..., radius + offset :][..., :width]
        total += both * _each(weights[:, offset])
    return total


def _gaussian(_: int, sigma: np.ndarray) -> tuple[Values, dict[str, Any]]:
    """Weights of a Gaussian of standard deviation `sigma` pixels."""
    offsets = np.arange(math.ceil(3 * sigma.max()) + 1)
    weights = np.exp(-0.5 * (offsets / np.maximum(sigma, 1e-3)[:, None]) ** 2)
    weights[offsets > np.ceil(3 * sigma)[:, None]] = 0  # each image's own cut, whatever the largest radius
    weights /= 2 * weights.sum(1, keepdims=True) - weights[:, :1]
    return {"weights": weights}, {}


def low_resolution(pixels: Tensor, rows: Tensor, sides: list[tuple[int, int]]) -> Tensor:
    """Reduce to fewer pixels per side and enlarge again. rows (n,): by side; sides: each with its number of rows."""
    size, changed = pixels.shape[3], pixels.clone()
    for (side, _), part in zip(sides, rows.split([count for _, count in sides]), strict=True):
        changed[part] = resize(resize(pixels[part], side), size)
    return changed


def _by_side(size: int, share: np.ndarray) -> tuple[Values, dict[str, Any]]:
    """Sort images by round(share x S)."""
    sides = np.maximum(np.rint(share * size), 1).astype(int)
    found, counts = np.unique(sides, return_counts=True)
    rows = np.argsort(sides, kind="stable")
    return {"rows": rows}, {"sides": list(zip(found.tolist(), counts.tolist(), strict=True))}


# ----------------------------------------------------------------------------------------------- geometry


def affine(pixels: Tensor, matrix: Tensor) -> Tensor:
    """Move pixels: one at (u, v), both -1 to 1 between the edges, comes from matrix (n, 2, 3) times (u, v, 1)."""
    size = pixels.shape[3]
    across = ((2 * torch.arange(size, device=pixels.device, dtype=torch.float64) + 1) / size - 1).float()
    grid = []
    for row in matrix.unbind(1):
        a, b, c = (_each(part)[:, 0] for part in row.unbind(1))
        grid.append(a * across[None, None, :] + b * across[None, :, None] + c)
    return grid_sample(pixels, torch.stack(grid, 3), mode="bilinear", padding_mode="border", align_corners=False)


Row = tuple[Any, Any, Any]  # (n,) float64 or a number each


def _crop(top: np.ndarray, left: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[Row, Row]:
    """Stretch a window (shares of the side) to the whole."""
    return (width, 0.0, 2 * left + width - 1), (0.0, height, 2 * top + height - 1)


def _rotation(degrees: np.ndarray) -> tuple[Row, Row]:
    """Rotate anticlockwise about the middle."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (cos, -sin, 0.0), (sin, cos, 0.0)


_MATRICES: dict[str, Callable[..., tuple[Row, Row]]] = {
    "crop": _crop,
    "rotate": _rotation,
    # Rows above the middle to the right, those below to the left, by `shear` of their distance from it.
    "shear_x": lambda shear: ((1.0, shear, 0.0), (0.0, 1.0, 0.0)),
    "shear_y": lambda shear: ((1.0, 0.0, 0.0), (shear, 1.0, 0.0)),
    # To the right, downwards, by a share of the side.
    "translate_x": lambda share: ((1.0, 0.0, -2 * share), (0.0, 1.0, 0.0)),
    "translate_y": lambda share: ((1.0, 0.0, 0.0), (0.0, 1.0, -2 * share)),
}


def occlusion(pixels: Tensor, rows: Tensor, columns: Tensor, level: Tensor) -> Tensor:
    """Make a rectangle one grey level: rows (n, S) and columns (n, S) bool."""
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, _each(level), pixels)


def _rectangle(
    size: int, top: np.ndarray, left: np.ndarray, height: np.ndarray, width: np.ndarray, level: np.ndarray
) -> tuple[Values, dict[str, Any]]:
    """Say which rows and columns have their middle in a rectangle (shares of the side)."""
    middles = (np.arange(size) + 0.5) / size
    rows, columns = (
        (middles >= start[:, None]) & (middles < (start + length)[:, None])
        for start, length in ((top, height), (left, width))
    )
    return {"rows": rows, "columns": columns, "level": level}, {}


_PREPARED: dict[str, Callable[..., tuple[Values, dict[str, Any]]]] = {
    "posterise": lambda _, bits: ({"step": 2.0 ** (8 - bits)}, {}),
    "blur": _gaussian,
    "low_resolution": _by_side,
    "occlusion": _rectangle,
}


# ------------------------------------------------------------------------------------------------- helpers


def _between(zero: Tensor, one: Tensor, factor: Tensor) -> Tensor:
    """Blend: zero at factor 0, one at 1, and on beyond."""
    return (zero + (one - zero) * _each(factor)).clamp_(0, 255)


def _each(values: Tensor) -> Tensor:
    """Reshape (n,) to (n, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
