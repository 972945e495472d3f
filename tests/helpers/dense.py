"""Dense float64 references, written from the papers' equations with none of the project's code.

Everything is materialised: all logits, all centres, one process, float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

EDGE = 1e-6


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def falling(angle: Tensor) -> Tensor:
    """cos on [0, pi]; beyond, SphereFace's continuation."""
    inside = angle.cos()
    beyond = -angle.cos() - 2
    far = angle.cos() - 4
    return torch.where(angle <= math.pi, inside, torch.where(angle <= 2 * math.pi, beyond, far))


def arc(c: Tensor, m: float | Tensor) -> Tensor:
    return falling(c.clamp(EDGE - 1, 1 - EDGE).acos() + m)


@dataclass
class Problem:
    """One global batch and the centres it meets, all float64 (or int64)."""

    centres: Tensor  # (C, D) unnormalised
    student: Tensor  # (N, D)
    teacher: Tensor  # (N, D)
    labels: Tensor  # (N,)
    seen: Tensor  # (C,) bool
    kept: Tensor = field(default_factory=lambda: torch.ones(0, dtype=torch.bool))  # (C,) sampled negatives


def make_problem(classes: int, samples: int, dim: int, labels: str = "random", seed: int = 0) -> Problem:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    centres, student = draw(classes, dim) * 0.3, draw(samples, dim)
    y = {
        "random": torch.randint(classes, (samples,), generator=g),
        "duplicates": torch.arange(samples) % min(2, classes),
        "last": torch.full((samples,), classes - 1),
    }[labels]
    student = student + 2 * centres[y]
    teacher = 0.7 * student + 0.5 * draw(samples, dim) + centres[y]
    return Problem(centres, student, teacher, y, torch.ones(classes, dtype=torch.bool))


def cross_entropy(x: Tensor, centres: Tensor, p: Problem, scale: float, moved) -> Tensor:
    """mean -log softmax with the target cosine replaced; negatives limited to kept classes."""
    cosine = unit(x) @ unit(centres).T
    target = cosine.gather(1, p.labels[:, None]).squeeze(1)
    own = torch.nn.functional.one_hot(p.labels, len(centres)).bool()
    logits = (scale * cosine).masked_fill(~own & ~p.kept[None, :], -torch.inf) if len(p.kept) else scale * cosine
    logits = torch.where(own, scale * moved(target)[:, None], logits)
    return (logits.logsumexp(1) - logits.gather(1, p.labels[:, None]).squeeze(1)).mean()


def ada_centres(p: Problem, weighted: bool, first_sight: bool, clip: str) -> tuple[Tensor, Tensor]:
    """AdaDistill's update, class by class, sample by sample -> centres (C, D), alpha (N,).

    clip "code": lam = clip(<w, f_t>, 1e-6, 1), a = clip(<f_s, f_t> lam, 1e-6, 1); "poster": clip(the product, 0, 1).
    """
    f_s, f_t = unit(p.student), unit(p.teacher)
    new, alphas = p.centres.clone(), torch.zeros(len(p.labels), dtype=torch.float64)
    for c in p.labels.unique().tolist():
        w, steps = p.centres[c], []
        for i in (p.labels == c).nonzero().squeeze(1).tolist():
            a = float(f_s[i] @ f_t[i])
            lam = float(w / w.norm() @ f_t[i]) if weighted else 1.0
            least = 1e-6 if clip == "code" else 0.0
            lam = min(max(lam, 1e-6), 1.0) if clip == "code" else lam
            a = min(max(a * lam, least), 1.0)
            if first_sight and not p.seen[c]:
                a = 0.0
            alphas[i] = a
            steps.append(a * w + (1 - a) * f_t[i])
        new[c] = torch.stack(steps).mean(0)
    return new, alphas


def margin_distillation_margins(p: Problem, low: float, high: float) -> Tensor:
    c = (unit(p.teacher) * unit(p.centres)[p.labels]).sum(1)
    return low + (high - low) * c.clamp(0, 1) / max(float(c.max()), 1e-6)
