"""Relational terms written out pair by pair and triple by triple, from their papers' equations, in float64.

Each takes the settings of the term and the batches of consecutive steps, and gives the term's value for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from helpers.term_batch import Batch

Settings = dict[str, Any]
Values = list[Tensor]
ZERO = torch.zeros((), dtype=torch.float64)
CLEAR = 1e-5  # choices by comparison must not hang on rounding


def each(value: Callable[[Settings, Batch], Tensor]) -> Callable[[Settings, list[Batch]], Values]:
    """A term that keeps nothing from step to step."""
    return lambda settings, batches: [value(settings, batch) for batch in batches]


def length(v: Tensor) -> Tensor:
    """Of a vector; 0 with gradient 0 where it is one of zeros."""
    return sum(c * c for c in v) ** 0.5 if v.detach().abs().sum() > 0 else v.sum() * 0


def direction(v: Tensor) -> Tensor:
    size = length(v)
    return v / size if size > 0 else v * 0


def huber(d: Tensor) -> Tensor:
    return d * d / 2 if abs(d) <= 1 else abs(d) - 0.5


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return direction(a) @ direction(b)


def rkd(settings: Settings, batch: Batch) -> Tensor:
    n, total = len(batch.labels), ZERO
    if weight := settings.get("distance_weight", 25.0):
        far = [[[length(x[i] - x[j]) for j in range(n)] for i in range(n)] for x in (batch.student, batch.teacher)]
        mu = [sum(one[i][j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1)) for one in far]
        pairs = [(i, j) for i in range(n) for j in range(n)]
        total = total + weight / n**2 * sum(huber(far[0][i][j] / mu[0] - far[1][i][j] / mu[1]) for i, j in pairs)
    if weight := settings.get("angle_weight", 50.0):
        e = [[[direction(x[j] - x[i]) for j in range(n)] for i in range(n)] for x in (batch.student, batch.teacher)]
        angle = lambda one, i, j, k: e[one][i][j] @ e[one][i][k]
        for i in range(n):
            for j in range(n):
                for k in range(j + 1):  # j, k and k, j are the same
                    off = huber(angle(0, i, j, k) - angle(1, i, j, k))
                    total = total + weight / n**3 * (off if j == k else 2 * off)
    return total


def sp(settings: Settings, batch: Batch) -> Tensor:
    n, total = len(batch.labels), ZERO
    for i in range(n):
        rows = []
        for x in (batch.student, batch.teacher):
            if settings.get("similarity") == "cosine":
                rows.append(torch.stack([cosine(x[i], x[j]) for j in range(n)]))
            else:
                rows.append(direction(torch.stack([x[i] @ x[j] for j in range(n)])))
        total = total + ((rows[0] - rows[1]) ** 2).sum()
    return total / n**2


def cckd(settings: Settings, batch: Batch) -> Tensor:
    gamma, order = settings.get("gamma", 0.4), settings.get("order", 2)
    kernel = lambda c: sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * c**p for p in range(order + 1))
    n, total = len(batch.labels), ZERO
    for i in range(n):
        for j in range(n):
            s, t = (kernel(cosine(x[i], x[j])) for x in (batch.student, batch.teacher))
            total = total + (s - t) ** 2
    return total / n**2


def darkrank(settings: Settings, batch: Batch) -> Tensor:
    alpha, beta = settings.get("alpha", 3.0), settings.get("beta", 3.0)
    n, total = len(batch.labels), ZERO
    for q in range(n):
        far = [[length(direction(x[q]) - direction(x[j])) for j in range(n)] for x in (batch.student, batch.teacher)]
        ranked = sorted((j for j in range(n) if j != q), key=lambda j: (far[1][j].item(), j))
        ranked = ranked[: settings.get("length", 3)]
        student, teacher = ({j: -alpha * one[j] ** beta for j in ranked} for one in far)
        if settings.get("kind", "hard") == "hard":
            total = total - _probability(student, ranked).log()
        else:
            for order in permutations(ranked):
                p_t, p_s = _probability(teacher, order), _probability(student, order)
                total = total + p_t * (p_t / p_s).log()
    return total / n


def _probability(scores: dict[int, Tensor], order: Any) -> Tensor:
    product = ZERO + 1
    for place, j in enumerate(order):
        product = product * scores[j].exp() / sum(scores[k].exp() for k in order[place:])
    return product


def ekd(settings: Settings, batches: list[Batch]) -> Values:
    share, tau = settings.get("update", 0.01), settings.get("temperature", 0.01)
    thresholds, values = ([0.0] * 6, [0.0] * 6), []
    for batch in batches:
        n = len(batch.labels)
        pairs = [(i, j) for j in range(n) for i in range(j)]
        one = [(i, j) for i, j in pairs if batch.labels[i] == batch.labels[j]]
        two = [(i, j) for i, j in pairs if batch.labels[i] != batch.labels[j]]
        for at, x in enumerate((batch.student, batch.teacher)):
            falling = sorted(((cosine(x[i], x[j])).item() for i, j in two), reverse=True)
            for k in range(6):
                new = falling[len(two) // 10 ** (k + 1)]
                thresholds[at][k] = share * new + (1 - share) * thresholds[at][k]
        two.sort(key=lambda pair: -(cosine(batch.student[pair[0]], batch.student[pair[1]])).item())
        count = settings.get("hardest", 2000)
        if count < len(two):
            last, left = ((cosine(*batch.student[list(two[k])])).item() for k in (count - 1, count))
            assert last - left > CLEAR, "the hardest pairs of this case hang on rounding"
        total = ZERO
        for weight, chosen in (
            (settings.get("positive_weight", 0.02), one),
            (settings.get("negative_weight", 0.01), two[:count]),
        ):
            for i, j in chosen:
                ranks = []
                for at, x in enumerate((batch.student, batch.teacher)):
                    c = cosine(x[i], x[j])
                    ranks.append(sum(1 / (1 + ((t - c) / tau).exp()) for t in thresholds[at]))
                total = total + weight / len(chosen) * (ranks[0] - ranks[1]) ** 2
        values.append(total)
    return values


def triplet(settings: Settings, batch: Batch) -> Tensor:
    low, high, reach = settings.get("margin_min", 0.2), settings.get("margin_max", 0.5), settings.get("semi_hard", 0.35)
    squared = lambda x, i, j: length(direction(x[i]) - direction(x[j])) ** 2
    angle = lambda x, i, j: cosine(x[i], x[j]).clamp(1e-6 - 1, 1 - 1e-6).acos()
    measure = angle if settings.get("distance") == "angle" else squared
    n, labels = len(batch.labels), batch.labels
    triplets: dict[tuple[int, int], list[int]] = {}
    for a in range(n):
        for p in range(n):
            for k in range(n):
                if a == p or labels[a] != labels[p] or labels[a] == labels[k]:
                    continue
                gap = (squared(batch.student, a, k) - squared(batch.student, a, p)).item()
                assert min(abs(gap), abs(gap - reach)) > CLEAR, "the negatives of this case hang on rounding"
                if 0 < gap < reach:
                    triplets.setdefault((a, p), []).append(k)
    d = {
        (a, p, k): max(0.0, (measure(batch.teacher, a, k) - measure(batch.teacher, a, p)).item())
        for (a, p), negatives in triplets.items()
        for k in negatives
    }
    total = ZERO
    for (a, p), negatives in triplets.items():
        for k in negatives:
            margin = low + (high - low) * d[a, p, k] / max(d.values())
            loss = measure(batch.student, a, p) - measure(batch.student, a, k) + margin
            total = total + (loss if loss > 0 else 0 * loss) / len(negatives) / len(triplets)
    return total
