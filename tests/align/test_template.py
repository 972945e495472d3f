"""The similarity transform and the warp, against drawings whose landmarks are known."""

from __future__ import annotations

import numpy as np
import pytest

from partialkd.align.template import TEMPLATE, aligned, moved, similarity, to_template


def turned(degrees: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    """A similarity transform (2, 3)."""
    angle = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([linear, np.array(shift)[:, None]], axis=1)


@pytest.mark.parametrize(("degrees", "scale"), [(0, 1), (30, 0.5), (-170, 3), (90, 1.7)])
def test_a_similarity_is_found_again(degrees: float, scale: float) -> None:
    known = turned(degrees, scale, (7.0, -3.0))
    np.testing.assert_allclose(similarity(TEMPLATE, moved(TEMPLATE, known)), known, atol=1e-9)


def test_noise_is_met_by_least_squares() -> None:
    """No other rotation, scale or shift near the one found comes nearer."""
    source = TEMPLATE + np.random.default_rng(0).normal(0, 3, (5, 2))
    best = similarity(source, TEMPLATE)
    error = lambda transform: float(((moved(source, transform) - TEMPLATE) ** 2).sum())
    for degrees, scale, shift in [(0.5, 1, (0, 0)), (0, 1.01, (0, 0)), (0, 1, (0.3, 0)), (0, 1, (0, -0.3))]:
        step = turned(degrees, scale, shift)
        other = np.concatenate([step[:, :2] @ best[:, :2], (step[:, :2] @ best[:, 2] + step[:, 2])[:, None]], axis=1)
        assert error(best) < error(other)


def test_a_face_is_not_mirrored() -> None:
    mirrored = TEMPLATE * [-1, 1]
    transform = similarity(mirrored, TEMPLATE)
    assert np.linalg.det(transform[:, :2]) > 0


def test_one_point_is_no_face() -> None:
    with pytest.raises(ValueError, match="one and the same point"):
        similarity(np.ones((5, 2)), TEMPLATE)


def dots(points: np.ndarray, side: int, radius: float) -> np.ndarray:
    """White discs on black."""
    y, x = np.mgrid[:side, :side]
    distance = np.sqrt((x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2).min(-1)
    grey = (255 * np.clip(radius + 0.5 - distance, 0, 1)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize(("degrees", "scale"), [(0, 1.0), (20, 1.3), (-35, 2.6), (160, 5.0)])
def test_landmarks_come_to_the_template(degrees: float, scale: float) -> None:
    """The bright spots of the result lie where the template says, also where the photograph is much larger."""
    side = int(112 * scale * 2)
    centre = moved(np.array([[56.0, 56.0]]), turned(degrees, scale, (0, 0)))[0]
    points = moved(TEMPLATE, turned(degrees, scale, tuple(side / 2 - centre)))
    face = aligned(dots(points, side, 4 * scale), points)
    assert face.shape == (112, 112, 3)
    weight = face[..., 0].astype(float)
    y, x = np.mgrid[:112, :112]
    for px, py in TEMPLATE:
        near = weight * ((x - px) ** 2 + (y - py) ** 2 < 49)
        found = np.array([(x * near).sum(), (y * near).sum()]) / near.sum()
        np.testing.assert_allclose(found, (px, py), atol=0.25)


def test_an_aligned_face_stays_as_it_is() -> None:
    face = np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    assert np.abs(aligned(face, TEMPLATE).astype(int) - face).max() <= 1  # the last bit of the interpolation


def test_fine_texture_is_averaged_not_sampled() -> None:
    """A checkerboard of single pixels, made eight times smaller, is grey."""
    side = 112 * 8
    board = np.indices((side, side)).sum(0) % 2 * 255
    photograph = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    face = aligned(photograph, (TEMPLATE + 0.5) * 8 - 0.5)
    assert np.abs(face.astype(int) - 127).max() <= 3


def test_other_sizes_scale_the_template() -> None:
    np.testing.assert_allclose(moved(TEMPLATE, to_template(TEMPLATE, 224)), (TEMPLATE + 0.5) * 2 - 0.5)
