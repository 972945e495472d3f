"""AdaDistill's momentum where cosines are negative: as the authors' code clips, and as their poster prints it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers import dense
from helpers.centre_cases import assembled, compare, one_step, problem
from helpers.ranks import run
from partialkd.centres.moving_average import momentum

# <f_s, f_t>, <w, f_t> -> a' of the code, a' of the poster; a of the code, a of the poster
CASES = [
    (-0.9, -0.8, 1e-6, 0.72, 1e-6, 0.0),
    (0.9, -0.8, 0.9e-6, 0.0, 0.9, 0.9),
    (-0.9, 0.8, 1e-6, 0.0, 1e-6, 0.0),
    (0.9, 0.8, 0.72, 0.72, 0.9, 0.9),
    (0.0, 0.5, 1e-6, 0.0, 1e-6, 0.0),
    (1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
]


@pytest.mark.parametrize(("student", "centre", "code", "poster", "plain_code", "plain_poster"), CASES)
def test_every_sign(
    student: float, centre: float, code: float, poster: float, plain_code: float, plain_poster: float
) -> None:
    one, other = (torch.tensor([cosine], dtype=torch.float64) for cosine in (student, centre))
    for clip, wanted, plain in (("code", max(code, 1e-6), plain_code), ("poster", poster, plain_poster)):
        assert momentum(one, other, clip).item() == pytest.approx(wanted, rel=1e-12)  # type: ignore[arg-type]
        assert momentum(one, None, clip).item() == pytest.approx(plain, rel=1e-12)  # type: ignore[arg-type]


def both_negative() -> dense.Problem:
    """A third of the samples has a teacher's embedding that looks away from student and centre, every sign occurs."""
    p = problem(classes=7, samples=12)
    away = torch.arange(12) % 3 == 0
    against = -(dense.unit(p.student) + dense.unit(p.centres)[p.labels])
    p.teacher[away] = against[away]
    p.student[1] = -p.teacher[1] + 0.1 * p.student[1]
    return p


def cosines(p: dense.Problem) -> tuple[Tensor, Tensor]:
    f_t = dense.unit(p.teacher)
    return (dense.unit(p.student) * f_t).sum(1), (dense.unit(p.centres)[p.labels] * f_t).sum(1)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", ["ada", "ada_weighted", "ada_poster"])
def test_losses_gradients_and_centres_where_cosines_are_negative(name: str, size: int) -> None:
    p = both_negative()
    student, centre = cosines(p)
    assert ((student < 0) & (centre < 0)).sum() == 4
    assert ((student < 0) & (centre > 0)).any()
    compare(name, p, size)


@pytest.mark.distributed
def test_the_two_differ_where_both_are_negative() -> None:
    p = both_negative()
    centres = {name: assembled(run(one_step, 1, name, p, {}))[2] for name in ("ada_weighted", "ada_poster")}
    moved = (centres["ada_weighted"] - centres["ada_poster"]).abs().amax(1) > 0.01
    student, centre = cosines(p)
    both = torch.zeros(len(p.centres), dtype=torch.bool)
    both[p.labels[(student < 0) & (centre < 0)]] = True
    assert torch.equal(moved, both)
