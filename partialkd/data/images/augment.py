"""Augment training batches: which records are changed, how much, in which order.

`draw` turns a batch's record indices into `Step`s of plain numbers, each a hash of (seed, epoch, record, parameter);
`prepare` makes of these what `Prepared.apply` carries out on the images that a loader has decoded, made grey, mirrored
and normalised, on their device (`pixel_operations.py`); what it needs there travels in one piece (`carry.py`). There is
one implementation for all loaders, and no result depends on the batch, the rank or the number of ranks. Passes over a
`SequentialPlan` (evaluation, the teacher's) change nothing.

In order, with the keys of `data.augment`:
- crop: a window, each side a share in [crop_least, 1] of the image's, that lies in the image or reaches over its
  edges by `crop_shift` of the window's side, is stretched to the image's size (bilinear; beyond an edge its pixels
  repeat).
- rand: `rand_ops` operations, drawn with replacement from `RAND`, of strength `rand_magnitude` with a random sign.
- colour: brightness, contrast, saturation, hue, in this order.
- blur: Gaussian, standard deviation in [0, blur_sigma] pixels.
- low_resolution: to a share in [low_resolution_least, 1] of the side and back (bilinear, antialiased).
- occlusion: a rectangle of up to `occlusion_most` of the area, sides 1:2 to 2:1, of one grey level, inside the image.
All shares, strengths, positions and levels are uniform; the aspect is so in its logarithm.
Source: RandAugment, arXiv:1909.13719. Differs: no histogram equalisation; edges repeat instead of a grey border;
translation reaches 0.3 of the side instead of 0.45; strength 1 is what is usually magnitude 30; several strengths are
signed at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from partialkd.config import AugmentConfig
from partialkd.counter_random import uniform
from partialkd.data.images import pixel_operations as operations
from partialkd.data.images.carry import carry

NAMES = ("crop", "rand", "colour", "blur", "low_resolution", "occlusion")  # keys of data.augment, in their order
_SALTS = {name: 100 * number for number, name in enumerate(NAMES, 1)}  # of the choice; parameters count on from there

Values = operations.Values

# Operation -> its parameters, from a strength in -1..1.
RAND: dict[str, Callable[[np.ndarray], Values]] = {
    "identity": lambda _: {},
    "autocontrast": lambda _: {},
    "brightness": lambda m: {"factor": 1 + 0.9 * m},
    "contrast": lambda m: {"factor": 1 + 0.9 * m},
    "saturation": lambda m: {"factor": 1 + 0.9 * m},
    "sharpness": lambda m: {"factor": 1 + 0.9 * m},
    "posterise": lambda m: {"bits": 8 - np.rint(4 * np.abs(m))},
    "solarise": lambda m: {"threshold": 256 * (1 - np.abs(m))},
    "rotate": lambda m: {"degrees": 30 * m},
    "shear_x": lambda m: {"shear": 0.3 * m},
    "shear_y": lambda m: {"shear": 0.3 * m},
    "translate_x": lambda m: {"share": 0.3 * m},
    "translate_y": lambda m: {"share": 0.3 * m},
}


class Step(NamedTuple):
    """One operation on some images of a batch."""

    operation: str  # a function of pixel_operations
    rows: np.ndarray  # (n,) int64, ascending positions in the batch
    values: Values  # parameters of the operation, (n,) float64 each


def draw(config: AugmentConfig, seed: int | None, epoch: int, indices: np.ndarray) -> list[Step]:
    """Decide what to do with the records `indices` (b,) in an epoch; nothing without a seed (`Plan.seed`)."""
    steps: list[Step] = []
    if seed is None:
        return steps
    for name in NAMES:
        share, salt = getattr(config, name), _SALTS[name]
        if share == 0:
            continue
        rows = np.flatnonzero(uniform(seed, salt, epoch, indices) < share)
        if len(rows):
            chances = _Chances(seed, epoch, indices[rows], salt)
            if name == "rand":
                steps += _rand_steps(config, rows, chances)
            else:
                steps.append(Step(name, rows, _DRAW[name](config, chances)))
    return steps


@dataclass(frozen=True)
class Prepared:
    """The steps of a batch with everything they need beside its images: `arrays`, to travel to their device."""

    arrays: Values
    steps: list[operations.Ready]

    def apply(self, images: Tensor, there: Mapping[str, Tensor]) -> None:
        """Change the images (b, 3, S, S), normalised to -1..1, in place. there: `arrays` on their device.

        Those to be changed are first rounded to whole grey levels, so that loaders whose results differ in the last bit
        of a float32 do not end up on two sides of a threshold.
        """
        if not self.steps:
            return
        chosen = there[_TOUCHED]
        pixels = images[chosen].mul_(127.5).add_(127.5004).round_()  # luma comes in thousandths: no tie at a half
        for number, step in enumerate(self.steps):
            rows, given = there[_key(number, _ROWS)], {name: there[_key(number, name)] for name in step.arrays}
            pixels[rows] = getattr(operations, step.operation)(pixels[rows], **given, **step.fixed)
        images[chosen] = pixels.sub_(127.5).div_(127.5)


_TOUCHED, _ROWS = "touched", "of the touched"


def _key(step: int, name: str) -> str:
    return f"{step} {name}"


def prepare(steps: list[Step], size: int) -> Prepared:
    """Make steps ready for images of `size` pixels per side."""
    if not steps:
        return Prepared({}, [])
    touched = np.unique(np.concatenate([step.rows for step in steps]))
    arrays, ready = {_TOUCHED: touched}, [operations.ready(one.operation, one.values, size) for one in steps]
    for number, (drawn, step) in enumerate(zip(steps, ready, strict=True)):
        arrays[_key(number, _ROWS)] = np.searchsorted(touched, drawn.rows)
        arrays |= {_key(number, name): array for name, array in step.arrays.items()}
    return Prepared(arrays, ready)


def apply(images: Tensor, steps: list[Step]) -> None:
    """Change the images (b, 3, S, S), normalised to -1..1, in place, as `Prepared.apply` says."""
    prepared = prepare(steps, images.shape[3])
    prepared.apply(images, carry(prepared.arrays, images.device))


class _Chances:
    """Draws the random numbers of some records, one series of (n,) after the other."""

    def __init__(self, seed: int, epoch: int, indices: np.ndarray, salt: int) -> None:
        self.seed, self.epoch, self.indices, self.salt = seed, epoch, indices, salt

    def between(self, low: float, high: float) -> np.ndarray:
        """Draw (n,) float64, uniform in [low, high)."""
        self.salt += 1
        return low + (high - low) * uniform(self.seed, self.salt, self.epoch, self.indices)


def _rand_steps(config: AugmentConfig, rows: np.ndarray, chances: _Chances) -> list[Step]:
    steps = []
    for _ in range(config.rand_ops):
        which = np.floor(chances.between(0, len(RAND)))
        strength = config.rand_magnitude * np.where(chances.between(0, 1) < 0.5, -1, 1)
        for number, (name, values) in enumerate(RAND.items()):
            mine = which == number
            if name != "identity" and mine.any():
                steps.append(Step(name, rows[mine], values(strength[mine])))
    return steps


def _crop(config: AugmentConfig, chances: _Chances) -> Values:
    height, width = (chances.between(config.crop_least, 1) for _ in range(2))
    return {
        "top": _start(height, config.crop_shift, chances),
        "left": _start(width, config.crop_shift, chances),
        "height": height,
        "width": width,
    }


def _start(length: np.ndarray, shift: float, chances: _Chances) -> np.ndarray:
    """Place an interval of `length` (n,) in 0..1 that may reach over its ends by `shift` of the length."""
    return chances.between(0, 1) * (1 - length + 2 * shift * length) - shift * length


def _colour(config: AugmentConfig, chances: _Chances) -> Values:
    def factor(most: float) -> np.ndarray:
        return chances.between(1 - most, 1 + most)

    return {
        "brightness_factor": factor(config.brightness),
        "contrast_factor": factor(config.contrast),
        "saturation_factor": factor(config.saturation),
        "turns": chances.between(-config.hue, config.hue),
    }


def _occlusion(config: AugmentConfig, chances: _Chances) -> Values:
    area, aspect = chances.between(0, config.occlusion_most), 2 ** chances.between(-1, 1)
    height, width = np.sqrt(area * aspect), np.sqrt(area / aspect)
    return {
        "top": _start(height, 0, chances),
        "left": _start(width, 0, chances),
        "height": height,
        "width": width,
        "level": chances.between(0, 255),
    }


_DRAW: dict[str, Callable[[AugmentConfig, _Chances], Values]] = {
    "crop": _crop,
    "colour": _colour,
    "blur": lambda config, chances: {"sigma": chances.between(0, config.blur_sigma)},
    "low_resolution": lambda config, chances: {"share": chances.between(config.low_resolution_least, 1)},
    "occlusion": _occlusion,
}
