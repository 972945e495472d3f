"""Each operation of the augmentations against Pillow, NumPy or colorsys."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from helpers.photos import SIZE, photo, planes
from partialkd.data.images import pixel_operations as operations

pytestmark = pytest.mark.usefixtures("one_thread")


def done(operation: str, image: np.ndarray, **values: float) -> np.ndarray:
    """The operation on one image -> (S, S, 3) float32."""
    step = operations.ready(operation, {key: np.array([v]) for key, v in values.items()}, SIZE)
    given = {name: torch.from_numpy(array) for name, array in step.arrays.items()}
    changed = getattr(operations, step.operation)(planes(image), **given, **step.fixed)
    return changed[0].permute(1, 2, 0).numpy()


def float_planes(image: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Pillow's geometry on each channel as 32-bit float, unrounded."""
    channels = [change(Image.fromarray(image[..., c].astype(np.float32), "F")) for c in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=2)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ("operation", "enhance", "tolerance"),
    [
        ("brightness", ImageEnhance.Brightness, 1.0),
        ("contrast", ImageEnhance.Contrast, 1.8),  # Pillow's mean is of rounded levels, its result cut off
        ("saturation", ImageEnhance.Color, 1.8),
        ("sharpness", ImageEnhance.Sharpness, 1.8),
    ],
)
def test_enhancements_are_pillows(operation: str, enhance: Any, tolerance: float, factor: float) -> None:
    theirs = np.asarray(enhance(Image.fromarray(photo())).enhance(factor)).astype(float)
    np.testing.assert_allclose(done(operation, photo(), factor=factor), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("bits", [1, 4, 6, 8])
def test_posterise_is_pillows(bits: int) -> None:
    theirs = np.asarray(ImageOps.posterize(Image.fromarray(photo()), bits))
    np.testing.assert_array_equal(done("posterise", photo(), bits=bits), theirs)


@pytest.mark.parametrize("threshold", [0, 77, 200, 256])
def test_solarise_is_pillows(threshold: int) -> None:
    theirs = np.asarray(ImageOps.solarize(Image.fromarray(photo()), threshold))
    np.testing.assert_array_equal(done("solarise", photo(), threshold=threshold), theirs)


def test_autocontrast_is_pillows() -> None:
    image = photo() // 3 + 40
    image[..., 2] = 90  # one level: stays
    theirs = np.asarray(ImageOps.autocontrast(Image.fromarray(image))).astype(float)
    np.testing.assert_allclose(done("autocontrast", image), theirs, rtol=0, atol=1.001)  # Pillow cuts off


@pytest.mark.parametrize("turns", [-0.4, -0.1, 0.0, 0.02, 0.3, 0.5])
def test_hue_is_that_of_hsv(turns: float) -> None:
    image = photo()
    image[0, :4] = [[9, 9, 9], [0, 0, 0], [255, 255, 255], [200, 200, 10]]
    got = done("hue", image, turns=turns)
    for at in np.ndindex(8, SIZE):
        h, s, v = colorsys.rgb_to_hsv(*(image[at] / 255))
        np.testing.assert_allclose(got[at], 255 * np.array(colorsys.hsv_to_rgb((h + turns) % 1, s, v)), atol=2e-2)


def test_colour_is_its_four_parts_in_order() -> None:
    parts = photo().astype(np.float32)
    for operation, values in (
        ("brightness", {"factor": 1.1}), ("contrast", {"factor": 0.7}), ("saturation", {"factor": 1.4}),
        ("hue", {"turns": 0.1}),
    ):  # fmt: skip
        parts = done(operation, parts, **values)
    got = done("colour", photo(), brightness_factor=1.1, contrast_factor=0.7, saturation_factor=1.4, turns=0.1)
    np.testing.assert_array_equal(got, parts)


@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.0, 2.3])
def test_blur_is_a_gaussian_over_repeated_edges(sigma: float) -> None:
    radius = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-9)) ** 2)
    expected = np.pad(photo().astype(np.float64), ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    for axis in (0, 1):
        kernel = weights / weights.sum()
        expected = np.apply_along_axis(lambda line, kernel=kernel: np.convolve(line, kernel, "valid"), axis, expected)
    np.testing.assert_allclose(done("blur", photo(), sigma=sigma), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.33, 0.8, 1.0])
def test_low_resolution_is_pillows_resize_down_and_up(share: float) -> None:
    side = round(share * SIZE)
    theirs = float_planes(
        photo(), lambda x: x.resize((side, side), Image.BILINEAR).resize((SIZE, SIZE), Image.BILINEAR)
    )
    np.testing.assert_allclose(done("low_resolution", photo(), share=share), theirs, rtol=0, atol=1e-2)


@pytest.mark.parametrize("window", [(0.0, 0.0, 1.0, 1.0), (0.1, 0.25, 0.6, 0.7), (0.4, 0.0, 0.5, 1.0)])
def test_crop_is_pillows_window(window: tuple[float, ...]) -> None:
    top, left, height, width = window
    box = tuple(SIZE * edge for edge in (left, top, left + width, top + height))
    theirs = float_planes(photo(), lambda x: x.transform((SIZE, SIZE), Image.EXTENT, box, Image.BILINEAR))
    got = done("crop", photo(), top=top, left=left, height=height, width=width)
    np.testing.assert_allclose(got, theirs, rtol=0, atol=1e-2)


def test_crop_over_the_edge_repeats_it() -> None:
    got = done("crop", photo(), top=0.0, left=-8 / SIZE, height=1.0, width=1.0)  # 8 pixels to the right
    expected = np.pad(photo(), ((0, 0), (8, 0), (0, 0)), mode="edge")[:, :SIZE]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("operation", "values", "matrix"),
    [  # Pillow: source x = a x + b y + c, source y = d x + e y + f, from the middle here
        ("rotate", {"degrees": 90.0}, (0, -1, 0, 1, 0, 0)),
        ("rotate", {"degrees": -20.0}, None),
        ("shear_x", {"shear": 0.2}, (1, 0.2, 0, 0, 1, 0)),
        ("shear_y", {"shear": -0.3}, (1, 0, 0, -0.3, 1, 0)),
        ("translate_x", {"share": 0.25}, (1, 0, -0.25 * SIZE, 0, 1, 0)),
        ("translate_y", {"share": -0.125}, (1, 0, 0, 0, 1, 0.125 * SIZE)),
    ],
)
def test_geometry_is_pillows(operation: str, values: dict[str, float], matrix: tuple[float, ...] | None) -> None:
    """Where Pillow looks inside the image; it leaves what is outside black, here edges repeat."""
    middle = SIZE / 2

    def change(x: Image.Image) -> Image.Image:
        if matrix is None:
            return x.rotate(values["degrees"], Image.BILINEAR)
        a, b, c, d, e, f = matrix
        shifted = (a, b, c + middle - (a + b) * middle, d, e, f + middle - (d + e) * middle)
        return x.transform((SIZE, SIZE), Image.AFFINE, shifted, Image.BILINEAR)

    inside = float_planes(np.full_like(photo(), 100), change) > 99.9
    got, theirs = done(operation, photo(), **values), float_planes(photo(), change)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(got[inside], theirs[inside], rtol=0, atol=2e-2)
    np.testing.assert_allclose(done(operation, np.full_like(photo(), 100), **values), 100, rtol=0, atol=1e-3)


def test_translation_goes_right_and_down() -> None:
    right, down = done("translate_x", photo(), share=0.25), done("translate_y", photo(), share=0.25)
    np.testing.assert_allclose(right[:, 8:], photo()[:, :-8], rtol=0, atol=1e-2)
    np.testing.assert_allclose(down[8:], photo()[:-8], rtol=0, atol=1e-2)


def test_occlusion_covers_its_rectangle() -> None:
    got = done("occlusion", photo(), top=0.25, left=0.5, height=0.25, width=0.375, level=140.0)
    expected = photo().astype(np.float32)
    expected[8:16, 16:28] = 140
    np.testing.assert_array_equal(got, expected)
