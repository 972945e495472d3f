"""Change pixels (n, 3, S, S) float32 in 0..255 by parameters (n,) of each image -> a new tensor.

Runs on the device of the pixels. Each image by itself: a result does not depend on what else is in the batch. Results
are not rounded to whole grey levels but where that is the operation (`posterise`); they are cut off at 0 and 255.
brightness, contrast, saturation, sharpness, posterise, solarise, autocontrast, crop, rotate, shear and low_resolution
are Pillow's of those names up to its rounding, hue is that of HSV, blur a Gaussian cut off at three standard
deviations. Beyond an edge its pixels repeat.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from partialkd.data.images.decode import resize, to_grey

# ----------------------------------------------------------------------------------------------- colours


def brightness(pixels: Tensor, factor: np.ndarray) -> Tensor:
    """Multiply grey levels; 0: black, 1: as it was."""
    return (pixels * _each(factor, pixels)).clamp_(0, 255)


def contrast(pixels: Tensor, factor: np.ndarray) -> Tensor:
    """Move away from (factor > 1) or towards the image's mean luma, a whole number as in Pillow."""
    mean = to_grey(pixels).mean((1, 2, 3), keepdim=True, dtype=torch.float64).round().float()
    return _between(mean, pixels, factor)


def saturation(pixels: Tensor, factor: np.ndarray) -> Tensor:
    """Move away from or towards grey; 0: grey, 1: as it was."""
    return _between(to_grey(pixels), pixels, factor)


def hue(pixels: Tensor, turns: np.ndarray) -> Tensor:
    """Turn colours along the colour circle of HSV; saturation and value stay."""
    high = pixels.amax(1)
    spread = high - pixels.amin(1)
    red, green, blue = pixels.unbind(1)
    by = spread.clamp(min=1e-6)  # grey pixels have no hue: any will do
    sixth = torch.where(high == green, (blue - red) / by + 2, (red - green) / by + 4)
    sixth = torch.where(high == red, (green - blue) / by, sixth) + 6 * _each(turns, pixels)[:, 0]
    places = [torch.remainder(start + sixth, 6) for start in (5, 3, 1)]
    return torch.stack([high - spread * torch.minimum(at, 4 - at).clamp(0, 1) for at in places], 1)


def colour(
    pixels: Tensor,
    brightness_factor: np.ndarray,
    contrast_factor: np.ndarray,
    saturation_factor: np.ndarray,
    turns: np.ndarray,
) -> Tensor:
    """Change brightness, contrast, saturation and hue, one after the other."""
    changed = contrast(brightness(pixels, brightness_factor), contrast_factor)
    return hue(saturation(changed, saturation_factor), turns)


def posterise(pixels: Tensor, bits: np.ndarray) -> Tensor:
    """Keep only the highest `bits` of each grey level."""
    step = _each(2.0 ** (8 - bits), pixels)
    return (pixels.round() / step).floor_() * step


def solarise(pixels: Tensor, threshold: np.ndarray) -> Tensor:
    """Invert grey levels from the threshold on."""
    return torch.where(pixels < _each(threshold, pixels), pixels, 255 - pixels)


def autocontrast(pixels: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a channel of one level stays."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    return torch.where(high > low, (pixels - low) * (255 / (high - low)), pixels).clamp_(0, 255)


# ---------------------------------------------------------------------------------------------- sharpness


def sharpness(pixels: Tensor, factor: np.ndarray) -> Tensor:
    """Sharpen; 0: smoothed by 3 x 3 (5 in the middle, 1 around, over 13), 1: as it was; the outermost pixels stay."""
    height, width = pixels.shape[2:]
    moved = [pixels[:, :, y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)]
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = (torch.stack(moved).sum(0) + 4 * moved[4]) / 13
    return _between(smooth, pixels, factor)


def blur(pixels: Tensor, sigma: np.ndarray) -> Tensor:
    """Blur by a Gaussian of standard deviation `sigma` pixels."""
    return _blur_rows(_blur_rows(pixels, sigma).mT, sigma).mT


def _blur_rows(pixels: Tensor, sigma: np.ndarray) -> Tensor:
    radius, width = math.ceil(3 * sigma.max()), pixels.shape[3]
    offsets = np.arange(radius + 1)
    weights = np.exp(-0.5 * (offsets / np.maximum(sigma, 1e-3)[:, None]) ** 2)
    weights[offsets > np.ceil(3 * sigma)[:, None]] = 0  # each image's own cut, whatever the largest radius
    weights /= 2 * weights.sum(1, keepdims=True) - weights[:, :1]
    wide = pad(pixels, (radius, radius, 0, 0), mode="replicate")
    total = pixels * _each(weights[:, 0], pixels)
    for offset in range(1, radius + 1):
        both = wide[..., radius - offset :][..., :width] + wide[..., radius + offset :][..., :width]
        total += both * _each(weights[:, offset], pixels)
    return total


def low_resolution(pixels: Tensor, share: np.ndarray) -> Tensor:
    """Reduce to round(share x S) pixels per side and enlarge again."""
    size = pixels.shape[3]
    sides, changed = np.maximum(np.rint(share * size), 1).astype(int), pixels.clone()
    for side in np.unique(sides).tolist():
        rows = torch.from_numpy(np.flatnonzero(sides == side)).to(pixels.device)
        changed[rows] = resize(resize(pixels[rows], side), size)
    return changed


# ----------------------------------------------------------------------------------------------- geometry


def crop(pixels: Tensor, top: np.ndarray, left: np.ndarray, height: np.ndarray, width: np.ndarray) -> Tensor:
    """Stretch a window (shares of the side) to the whole."""
    zero = np.zeros_like(top)
    return _affine(pixels, (width, zero, 2 * left + width - 1), (zero, height, 2 * top + height - 1))


def rotate(pixels: Tensor, degrees: np.ndarray) -> Tensor:
    """Rotate anticlockwise about the middle."""
    cos, sin, zero = np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), np.zeros_like(degrees)
    return _affine(pixels, (cos, -sin, zero), (sin, cos, zero))


def shear_x(pixels: Tensor, shear: np.ndarray) -> Tensor:
    """Move rows above the middle to the right, those below to the left, by `shear` of their distance from it."""
    one, zero = np.ones_like(shear), np.zeros_like(shear)
    return _affine(pixels, (one, shear, zero), (zero, one, zero))


def shear_y(pixels: Tensor, shear: np.ndarray) -> Tensor:
    """Do as `shear_x`, with columns."""
    one, zero = np.ones_like(shear), np.zeros_like(shear)
    return _affine(pixels, (one, zero, zero), (shear, one, zero))


def translate_x(pixels: Tensor, share: np.ndarray) -> Tensor:
    """Move to the right, by a share of the side."""
    one, zero = np.ones_like(share), np.zeros_like(share)
    return _affine(pixels, (one, zero, -2 * share), (zero, one, zero))


def translate_y(pixels: Tensor, share: np.ndarray) -> Tensor:
    """Move downwards, by a share of the side."""
    one, zero = np.ones_like(share), np.zeros_like(share)
    return _affine(pixels, (one, zero, zero), (zero, one, -2 * share))


def occlusion(
    pixels: Tensor, top: np.ndarray, left: np.ndarray, height: np.ndarray, width: np.ndarray, level: np.ndarray
) -> Tensor:
    """Make a rectangle (shares of the side) one grey level: pixels whose middle lies in it."""
    middles = (np.arange(pixels.shape[3]) + 0.5) / pixels.shape[3]
    rows, columns = (
        torch.from_numpy((middles >= start[:, None]) & (middles < (start + length)[:, None])).to(pixels.device)
        for start, length in ((top, height), (left, width))
    )
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, _each(level, pixels), pixels)


Row = tuple[np.ndarray, np.ndarray, np.ndarray]


def _affine(pixels: Tensor, x: Row, y: Row) -> Tensor:
    """Move pixels: one at (u, v), both -1 to 1 between the edges, comes from x[0] u + x[1] v + x[2] and likewise y."""
    size = pixels.shape[3]
    across = torch.from_numpy((2 * np.arange(size) + 1) / size - 1).float().to(pixels.device)
    grid = []
    for row in (x, y):
        a, b, c = (_each(part, pixels)[:, 0] for part in row)
        grid.append(a * across[None, None, :] + b * across[None, :, None] + c)
    return grid_sample(pixels, torch.stack(grid, 3), mode="bilinear", padding_mode="border", align_corners=False)


# ------------------------------------------------------------------------------------------------- helpers


def _between(zero: Tensor, one: Tensor, factor: np.ndarray) -> Tensor:
    """Blend: zero at factor 0, one at 1, and on beyond."""
    return (zero + (one - zero) * _each(factor, one)).clamp_(0, 255)


def _each(values: np.ndarray, pixels: Tensor) -> Tensor:
    """Reshape (n,) to (n, 1, 1, 1) float32 on the device of the pixels."""
    return torch.from_numpy(values).float().to(pixels.device).view(-1, 1, 1, 1)
