"""The named margins dense and in float64, written from the papers' equations with none of the project's code.

Each takes the cosines of the global batch with all classes and gives all logits over the scale, the margin in place,
as the papers' softmax has them. What moves from batch to batch is kept in `State`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from helpers.dense import EDGE, Problem, ada_centres, falling, unit
from partialkd.counter_random import uniform  # what both draw from

SALT = 0xE1A5


@dataclass
class State:
    """What moves, and where a run is."""

    seed: int
    step: int = 0
    mean: float = 20.0
    std: float = 100.0
    t: float = 0.0
    lag: Tensor | None = field(default=None)  # (N,) of the geometry-aware part


def acos(c: Tensor, edge: float = EDGE) -> Tensor:
    return c.clamp(edge - 1, 1 - edge).acos()


def with_target(cosine: Tensor, y: Tensor, moved: Tensor) -> Tensor:
    return torch.where(one_hot(y, cosine.shape[1]).bool(), moved[:, None], cosine)


def adaface(cosine: Tensor, y: Tensor, f: Tensor, of: dict[str, Any], state: State) -> tuple[Tensor, Tensor | float]:
    m, h, share = of.get("m", 0.4), of.get("h", 0.333), of.get("t_alpha", 0.01)
    norms = torch.stack([row.dot(row).sqrt() for row in f.detach()]).clamp(0.001, 100)
    mean = sum(norms.tolist()) / len(norms)
    std = math.sqrt(sum((x - mean) ** 2 for x in norms.tolist()) / (len(norms) - 1))
    state.mean, state.std = share * mean + (1 - share) * state.mean, share * std + (1 - share) * state.std
    z = (norms - state.mean) / (state.std + 0.001) * h
    if of.get("geometry"):
        assert state.lag is not None
        warm = of.get("geometry_warmup_steps", 0)
        z = z + of["geometry"] * (min(1.0, state.step / warm) if warm else 1.0) * state.lag
    z = z.clamp(-1, 1)
    theta = (acos(target(cosine, y), 0.001) - m * z).clamp(0.001, math.pi - 0.001)
    return with_target(cosine, y, theta.cos() - m - m * z), 0.0


def magface(cosine: Tensor, y: Tensor, f: Tensor, of: dict[str, Any], state: State) -> tuple[Tensor, Tensor | float]:
    low, high = of.get("l_a", 10.0), of.get("u_a", 110.0)
    least, most = of.get("l_margin", 0.45), of.get("u_margin", 0.8)
    a = f.square().sum(1).sqrt().clamp(low, high)
    margin = (most - least) / (high - low) * (a - low) + least
    c = target(cosine, y)
    moved = falling(acos(c) + margin)
    if of.get("easy_margin", True):
        moved = torch.where(c > 0, moved, c)
    held = (a / high**2 + 1 / a).sum() / len(a)
    return with_target(cosine, y, moved), of.get("lambda_g", 35.0) * held


def elastic(cosine: Tensor, y: Tensor, f: Tensor, of: dict[str, Any], state: State) -> tuple[Tensor, Tensor | float]:
    arc = of["name"] == "elastic_arc"
    normal = NormalDist(of.get("m", 0.5 if arc else 0.35), of.get("std", 0.0125))
    shares = uniform(state.seed, SALT, state.step, torch.arange(len(y)).numpy())
    margins = [normal.inv_cdf(float(u)) for u in shares]
    c = target(cosine, y)
    if of.get("plus"):  # the sample of the k-th largest cosine has the k-th smallest margin
        places = sorted(range(len(y)), key=lambda i: -float(c.detach()[i]))
        dealt = dict(zip(places, sorted(margins), strict=True))
        margins = [dealt[i] for i in range(len(y))]
    m = torch.tensor(margins, dtype=torch.float64)
    return with_target(cosine, y, falling(acos(c) + m) if arc else c - m), 0.0


def curricular(cosine: Tensor, y: Tensor, f: Tensor, of: dict[str, Any], state: State) -> tuple[Tensor, Tensor | float]:
    c, share = target(cosine, y), of.get("t_alpha", 0.01)
    state.t = share * float(c.detach().mean()) + (1 - share) * state.t
    moved = falling(acos(c) + of.get("m", 0.5))
    hard = cosine > moved.detach()[:, None]
    return with_target(torch.where(hard, cosine * (state.t + cosine), cosine), y, moved), 0.0


def sphere(cosine: Tensor, y: Tensor, f: Tensor, of: dict[str, Any], state: State) -> tuple[Tensor, Tensor | float]:
    c, m, base = target(cosine, y), of.get("m", 1.5), of.get("base", 0.0)
    psi = falling(m * acos(c))
    lam = max(of.get("lambda_min", 0.0), base * (1 + of.get("gamma", 0.12) * (state.step + 1)) ** -of.get("power", 1.0))
    moved = (lam * c + psi) / (1 + lam)
    if of.get("gradient") == "straight_through":
        moved = c + (moved - c).detach()
    return with_target(cosine, y, moved), 0.0


def target(cosine: Tensor, y: Tensor) -> Tensor:
    return cosine.gather(1, y[:, None]).squeeze(1)


DENSE: dict[str, Callable[[Tensor, Tensor, Tensor, dict[str, Any], State], tuple[Tensor, Tensor | float]]] = {
    "adaface": adaface, "magface": magface, "elastic_arc": elastic, "elastic_cos": elastic, "curricular": curricular,
    "sphere": sphere,
}  # fmt: skip


def loss_of(x: Tensor, w: Tensor, p: Problem, scale: float, of: dict[str, Any], state: State) -> Tensor:
    """Softmax over all classes kept, by torch's cross-entropy, and what the margin adds."""
    cosine = unit(x) @ unit(w).T
    logits, added = DENSE[of["name"]](cosine, p.labels, x, of, state)
    if len(p.kept):
        logits = logits.masked_fill(~(p.kept | one_hot(p.labels, len(w)).bool()), -torch.inf)
    return cross_entropy(scale * logits, p.labels) + added


def train(p: Problem, method: dict[str, Any], scale: float, optimizer: Any, steps: int, seed: int) -> dict[str, Any]:
    """Some optimiser steps over trained, fixed or averaged centres -> all that one may want to compare.

    The student's embeddings stay where they are; each step has their gradient and loss.
    """
    of, state, kind = method["margin"], State(seed), method["name"]
    w = p.centres.clone().requires_grad_()
    rule = torch.optim.SGD([w], optimizer.lr, momentum=optimizer.momentum, weight_decay=optimizer.weight_decay)
    x, losses, gradients, seen = p.student.clone().requires_grad_(), [], [], p.seen.clone()
    for step in range(steps):
        state.step, x.grad = step, None
        if kind == "adadistill":
            now = Problem(w.detach(), p.student, p.teacher, p.labels, seen)
            f_s, f_t = unit(p.student), unit(p.teacher)
            sure = (unit(w.detach())[p.labels] * f_t).sum(1).clamp(1e-6, 1)
            state.lag = (sure - (f_s * f_t).sum(1)).clamp_min(0) * sure
            w.data.copy_(ada_centres(now, True, True, "code")[0])
            seen[p.labels] = True
        rule.zero_grad()
        loss = loss_of(x, w, p, scale, of, state)
        loss.backward()
        if kind == "trained_centres":
            before = w.detach().clone()
            rule.step()
            if len(p.kept):
                w.data[~p.kept] = before[~p.kept]
        losses.append(loss.detach())
        gradients.append(x.grad)
    return {"losses": torch.stack(losses), "gradients": torch.stack(gradients), "centres": w.detach(), "state": state}
