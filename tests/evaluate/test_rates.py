"""Operating points against explicit loops over every threshold."""

from __future__ import annotations

import numpy as np
import pytest

from partialkd.evaluate.rates import allowed, operating_points, too_few


def _scores(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    genuine, impostor = rng.normal(0.4, 0.2, 300), rng.normal(0, 0.2, 1000)
    return (genuine.round(2), impostor.round(2)) if ties else (genuine, impostor)


def _published_by_hand(genuine: np.ndarray, impostor: np.ndarray, far: float) -> tuple[float, float]:
    """What scikit-learn's roc_curve gives, written as loops; then the nearest point, the later one among equals."""
    points = []
    for score in sorted({*genuine.tolist(), *impostor.tolist()}, reverse=True):
        points.append((sum(impostor >= score), sum(genuine >= score)))
    corners = [(0, 0)]
    for at, point in enumerate(points):
        inside = 0 < at < len(points) - 1
        if inside:
            before = np.subtract(point, points[at - 1])
            after = np.subtract(points[at + 1], point)
        if not inside or tuple(before) != tuple(after):
            corners.append(point)
    rates = [(f / len(impostor), g / len(genuine)) for f, g in corners]
    best = min(range(len(rates)), key=lambda at: (abs(rates[at][0] - far), -at))
    return rates[best][1], rates[best][0]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("far", [1e-4, 1e-3, 0.0123, 0.1, 0.5])
def test_both_ways_equal_the_definitions(ties: bool, far: float) -> None:
    genuine, impostor = _scores(3, ties)
    point = operating_points(genuine, impostor, [far])[far]
    loosest = min(t for t in [*impostor, *genuine, -9.0] if sum(impostor > t) <= far * len(impostor))
    assert point.tar == pytest.approx(np.mean(genuine > loosest), abs=1e-12)
    assert point.far_reached == pytest.approx(np.mean(impostor > point.threshold), abs=1e-12)
    assert point.far_reached <= far
    assert (point.tar_published, point.far_published) == pytest.approx(
        _published_by_hand(genuine, impostor, far), abs=1e-12
    )


def test_published_may_accept_more_than_asked() -> None:
    genuine, impostor = np.array([0.9, 0.7, 0.5]), np.array([0.8, 0.6, 0.1, 0.0])
    point = operating_points(genuine, impostor, [0.2])[0.2]
    assert (point.tar, point.far_reached) == (pytest.approx(1 / 3), 0.0)
    assert (point.tar_published, point.far_published) == (pytest.approx(2 / 3), 0.25)


def test_rates_below_one_impostor() -> None:
    assert allowed(0.29, 100) == 29
    assert too_few(1e-3, 999)
    assert not too_few(1e-3, 1000)
    point = operating_points(np.array([0.9, 0.5]), np.array([0.7, 0.1]), [1e-6])[1e-6]
    assert (point.tar, point.threshold, point.far_reached) == (0.5, 0.7, 0.0)
