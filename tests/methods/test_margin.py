"""Margins: values and true derivatives against formulas, monotone everywhere, the straight-through variant named."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from partialkd.methods.margins import (
    arc_margin,
    combined_margin,
    cos_margin,
    falling_cosine,
    margin_softmax,
    straight_through,
)

COSINES = torch.linspace(-0.999, 0.999, 401, dtype=torch.float64)


def slope(moved, cosine: Tensor) -> Tensor:
    c = cosine.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(moved(c).sum(), c)
    return gradient


def test_arcface_is_the_cosine_of_the_sum_where_it_fits() -> None:
    inside = COSINES.acos() + 0.5 < math.pi
    want = COSINES * math.cos(0.5) - (1 - COSINES**2).sqrt() * math.sin(0.5)
    torch.testing.assert_close(arc_margin(COSINES, 0.5)[inside], want[inside])
    assert inside.sum() < len(inside)


def test_true_gradient() -> None:
    """d cos(theta + m) / d cos(theta) = sin(theta + m) / sin(theta); at 0.6 and 0.5 times scale 64 that is 79.2."""
    cosine = torch.tensor([0.6], dtype=torch.float64)
    theta = cosine.acos()
    torch.testing.assert_close(slope(lambda c: arc_margin(c, 0.5), cosine), (theta + 0.5).sin() / theta.sin())
    assert 64 * slope(lambda c: arc_margin(c, 0.5), cosine).item() == pytest.approx(79.2, abs=0.05)


def test_straight_through_has_slope_one_and_the_same_value() -> None:
    variant = lambda c: straight_through(c, arc_margin(c, 0.5))
    torch.testing.assert_close(slope(variant, COSINES), torch.ones_like(COSINES))
    torch.testing.assert_close(variant(COSINES), arc_margin(COSINES, 0.5))


@pytest.mark.parametrize("m1", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("m2", [0.0, 0.5, 2.0, 3.1])
def test_monotone_and_continuous_past_pi(m1: float, m2: float) -> None:
    cosine = torch.linspace(-0.99999, 0.99999, 200_001, dtype=torch.float64)
    moved = combined_margin(cosine, m1, m2, 0.2)
    assert (moved.diff() >= 0).all()
    steepest = slope(lambda c: combined_margin(c, m1, m2, 0.2), cosine).max() * cosine.diff().max()
    assert moved.diff().max() <= steepest * 1.01
    assert (slope(lambda c: combined_margin(c, m1, m2, 0.2), cosine) >= 0).all()


def test_falling_cosine_is_the_cosine_up_to_pi() -> None:
    angle = torch.linspace(0, math.pi - 1e-9, 100, dtype=torch.float64)
    torch.testing.assert_close(falling_cosine(angle), angle.cos())
    assert falling_cosine(torch.tensor(2 * math.pi - 1e-6)).item() == pytest.approx(-3.0)


def test_finite_at_the_edge() -> None:
    edge = torch.tensor([-1.0, 1.0, 1.0 + 1e-7, -1.0 - 1e-7])
    moved = lambda c: arc_margin(c, 0.5)
    assert moved(edge).isfinite().all()
    assert slope(moved, edge).isfinite().all()


def test_a_margin_for_each_sample() -> None:
    cosine, margin = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.5])
    each = torch.stack([arc_margin(c[None], float(m))[0] for c, m in zip(cosine, margin, strict=True)])
    torch.testing.assert_close(arc_margin(cosine, margin), each)


def test_margin_softmax_is_cross_entropy() -> None:
    cosine = torch.rand(5, 9, dtype=torch.float64) * 2 - 1
    labels = torch.arange(5)
    moved = cos_margin(cosine[range(5), labels], 0.35)
    logits = 64 * cosine.clone()
    logits[range(5), labels] = 64 * moved
    others = (64 * cosine).masked_fill(torch.nn.functional.one_hot(labels, 9).bool(), -torch.inf).logsumexp(1)
    torch.testing.assert_close(
        margin_softmax(others, moved, 64.0), torch.nn.functional.cross_entropy(logits, labels), rtol=1e-9, atol=0
    )
