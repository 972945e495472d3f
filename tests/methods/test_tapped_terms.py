"""Terms that look at maps inside both networks: values and gradients against the papers' sums in float64."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.ranks import run
from partialkd.config import PhaseConfig, TermSection
from partialkd.methods.terms import MapPair, TermInputs, Terms
from partialkd.world.world import World

N, DIM = 6, 5
Pairs = list[tuple[Tensor, Tensor]]
PHASE = {"model": {"name": "iresnet18"}, "method": {"name": "arcface"}, "epochs": 1.0, "global_batch": 8}


def maps(seed: int) -> Pairs:
    """Two pairs: of one size, and the student's larger than the teacher's one way, smaller the other way."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(N, *shape, generator=g, dtype=torch.float64)
    return [(draw(3, 4, 4), draw(3, 4, 4)), (draw(4, 6, 2), draw(4, 3, 4))]


def averaged(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) -> (C, *size): means over windows that divide the sides."""
    rows, columns = x.shape[1] // size[0], x.shape[2] // size[1]
    row = lambda r: torch.stack([window(x, r, c, rows, columns) for c in range(size[1])], dim=1)
    return torch.stack([row(r) for r in range(size[0])], dim=1)


def window(x: Tensor, r: int, c: int, rows: int, columns: int) -> Tensor:
    return x[:, r * rows : (r + 1) * rows, c * columns : (c + 1) * columns].sum((1, 2)) / (rows * columns)


def common(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    size = min(s.shape[1], t.shape[1]), min(s.shape[2], t.shape[2])
    return averaged(s, size), averaged(t, size)


def length(x: Tensor) -> Tensor:
    return (x * x).sum().sqrt()


def angle(s: Tensor, t: Tensor) -> Tensor:
    return 1 - (s * t).sum() / (length(s) * length(t))


def fitnets(s: Tensor, t: Tensor) -> Tensor:
    s, t = common(s, t)
    return ((s - t) ** 2).sum() / s.numel() / 2


def attention(s: Tensor, t: Tensor) -> Tensor:
    strengths = [sum(channel * channel for channel in x)[None] for x in (s, t)]
    s, t = (x / length(x) for x in common(*strengths))
    return length(s - t) ** 2 / 2


def nst(kernel: str, s: Tensor, t: Tensor) -> Tensor:
    s, t = ([channel.flatten() / length(channel) for channel in x] for x in common(s, t))
    between = [float(length(a - b).detach()) ** 2 for a in t for b in s]
    v = sum(between) / len(between)
    k = {
        "linear": lambda a, b: a @ b,
        "polynomial": lambda a, b: (a @ b) ** 2,
        "gaussian": lambda a, b: torch.exp(-((a - b) @ (a - b)) / (2 * v)),
    }[kernel]
    mean = lambda first, second: sum(k(a, b) for a in first for b in second) / (len(first) * len(second))
    return mean(t, t) + mean(s, s) - 2 * mean(t, s)


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "fitnets": ({"name": "fitnets"}, fitnets),
    "attention": ({"name": "attention"}, attention),
    "nst": ({"name": "nst"}, lambda s, t: nst("polynomial", s, t)),
    "nst gaussian": ({"name": "nst", "kernel": "gaussian"}, lambda s, t: nst("gaussian", s, t)),
    "nst linear": ({"name": "nst", "kernel": "linear"}, lambda s, t: nst("linear", s, t)),
    "angular": ({"name": "angular", "layer_weight": 0.3}, lambda s, t: 0.3 * angle(*common(s, t))),
    "angular, embeddings": ({"name": "angular", "layer_weight": 0.0}, lambda s, t: 0.0 * s.sum()),
}


def terms_of(case: str) -> tuple[Terms, TermSection]:
    config = PhaseConfig.model_validate(PHASE | {"terms": ({**CASES[case][0], "weight": 2.0},)}).terms
    return Terms(config), config[0]


def wanted(case: str, x: Tensor, t: Tensor, pairs: Pairs) -> Tensor:
    one = CASES[case][1]
    total = sum(one(s[i], h[i]) for s, h in pairs for i in range(N)) / N
    if case.startswith("angular"):
        total = total + sum(angle(x[i], t[i]) for i in range(N)) / N
    return total


def embeddings() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(11)
    return torch.randn(N, DIM, generator=g, dtype=torch.float64), torch.randn(N, DIM, generator=g, dtype=torch.float64)


def got(world: World, cases: list[str]) -> dict[str, Any]:
    mine = torch.arange(N).chunk(world.size)[world.rank]
    found = {}
    for case in cases:
        (x, t), pairs = embeddings(), maps(5)
        x = x[mine].requires_grad_()
        own = [MapPair(s[mine].requires_grad_(), h[mine]) for s, h in pairs]
        terms, config = terms_of(case)
        (term,) = terms.named.values()
        value = term.loss(TermInputs(x, torch.zeros(len(x)).long(), t[mine], world, taps={config: own}))
        (value + 0 * x.sum()).backward()
        found[case] = value.detach(), x.grad, [pair.student.grad for pair in own]
    return found


@cache
def reference(case: str) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Value, gradient of the embeddings and of each map, of the whole batch."""
    (x, t), pairs = embeddings(), maps(5)
    for one in (x, *(s for s, _ in pairs)):
        one.requires_grad_()
    value = wanted(case, x, t, pairs) + 0 * x.sum()
    value.backward()
    return value.detach(), x.grad, [s.grad for s, _ in pairs]


@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 3])
def test_value_and_gradients_are_those_of_the_papers(size: int) -> None:
    ranks = run(got, size, list(CASES))
    close = lambda found, want: torch.testing.assert_close(found, want, atol=1e-12, rtol=1e-9)
    for case in CASES:
        value, gradient, of_maps = reference(case)
        parts = [rank[case] for rank in ranks]
        close(torch.stack([part[0] for part in parts]).mean(), value)
        close(torch.cat([part[1] for part in parts]) / size, gradient)
        for at, wanted_one in enumerate(of_maps):
            gradients = [part[2][at] for part in parts]
            if CASES[case][0].get("layer_weight") == 0:
                assert gradients == [None] * size
            else:
                close(torch.cat(gradients) / size, wanted_one)


def test_a_teacher_in_single_precision_is_compared_in_the_students() -> None:
    (x, t), pairs = embeddings(), maps(5)
    for case in CASES:
        terms, config = terms_of(case)
        (term,) = terms.named.values()
        rough = {config: [MapPair(s, h.float()) for s, h in pairs]}
        value = term.loss(TermInputs(x, torch.zeros(N).long(), t.float(), World(), taps=rough))
        assert value.dtype is torch.float64
        assert math.isclose(float(value), float(wanted(case, x, t, pairs)), rel_tol=1e-5)
