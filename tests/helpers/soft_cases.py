"""Soft targets over several ranks: dense references of the terms in float64, and one optimiser step of ours.

The references are written from the papers' equations: all logits, all classes, one process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helpers import dense
from helpers.centre_cases import METHODS, SCALE, SEED, SGD, method_of, store_of
from partialkd.centres import Centres, CentreStore
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.config import PhaseConfig
from partialkd.methods.terms import TermInputs, Terms, TermSetting
from partialkd.methods.terms.soft import soft_targets
from partialkd.world.shard import shard_of
from partialkd.world.world import World

TEACHER_DIM, TEACHER_SCALE, WEIGHT = 5, 11.0, 0.7
RECORDS = torch.arange(1000) * 7 + 3  # of the samples of a problem


def teacher_of(p: dense.Problem, seed: int = 7) -> tuple[Tensor, Tensor]:
    """A teacher of another dimension: its centres (C, TEACHER_DIM), and its embeddings (N, TEACHER_DIM)."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(p.centres), TEACHER_DIM, generator=g, dtype=torch.float64)
    noise = torch.randn(len(p.labels), TEACHER_DIM, generator=g, dtype=torch.float64)
    return centres, centres[p.labels] + 0.8 * noise


def distributions(
    p: dense.Problem,
    x: Tensor,
    w: Tensor,
    f: Tensor,
    v: Tensor,
    scales: tuple[float, float],
    margins: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of student and teacher with margins at the own class; -inf where a class takes no part."""
    own = torch.nn.functional.one_hot(p.labels, len(w)).bool()
    found = []
    for embedding, rows, scale, margin in ((x, w, scales[0], margins[0]), (f, v, scales[1], margins[1])):
        cosine = dense.unit(embedding) @ dense.unit(rows).T
        logits = scale * torch.where(own, dense.arc(cosine, margin) if margin else cosine, cosine)
        found.append(logits.masked_fill(~own & ~p.kept, -torch.inf) if len(p.kept) else logits)
    return found[0], found[1]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """sum p log(p / q) of two vectors, 0 log 0 = 0."""
    there = p > 0
    return (p[there] * (p[there] / q[there]).log()).sum()


def wanted_term(term: dict[str, Any], labels: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """Image by image; z, t (N, C): logits of student and teacher."""
    temperature, total = term.get("temperature", 4.0), torch.zeros((), dtype=torch.float64)
    for i, label in enumerate(labels.tolist()):
        p, q = (t[i] / temperature).softmax(0), (z[i] / temperature).softmax(0)
        if term["name"] != "gkd":
            total = total + kl(p, q)
            continue
        primary = primary_of(z[i].detach().softmax(0), label, term["share"], term.get("most", 10**9))
        masses = [torch.stack([one[primary].sum(), one[~primary].sum()]) for one in (p, q)]
        total = total + kl(*masses) + term.get("beta", 8.0) * kl(p[primary] / masses[0][0], q[primary] / masses[1][0])
    return temperature**2 * total / len(labels)


def primary_of(p: Tensor, label: int, share: float, most: int) -> Tensor:
    """The own class, then the most probable ones until `share` is reached -> (C,) bool."""
    chosen = torch.zeros(len(p), dtype=torch.bool)
    chosen[label], mass = True, float(p[label])
    for at in [at for at in p.argsort(descending=True).tolist() if at != label][:most]:
        if mass >= share:
            break
        chosen[at], mass = True, mass + float(p[at])
    return chosen


def phase_of(method: str, term: dict[str, Any], centres: dict[str, Any]) -> PhaseConfig:
    settings = {"model": {"name": "iresnet18"}, "method": {**METHODS[method], "scale": SCALE}, "epochs": 1.0}
    settings |= {"global_batch": 8, "terms": (term,), "centres": centres}
    return PhaseConfig.model_validate(settings)


def soft_step(
    world: World, method: str, term: dict[str, Any], p: dense.Problem, taught: tuple[Tensor, Tensor] | None,
    settings: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """One optimiser step of a method and a term on this rank's part of the batch.

    taught: the teacher's own centres and embeddings; None: those of the problem, with the student's centres.
    """
    settings = dict(settings)
    dtype, splits = settings.pop("dtype", torch.float64), settings.pop("splits", 1)
    optimizer, unseen = settings.pop("optimizer", SGD), settings.pop("unseen", None)
    noise = settings.pop("noise", None)
    loss_of, phase = method_of(method), phase_of(method, {**term, "weight": WEIGHT}, settings)
    store = store_of(p, world, loss_of.config.centre_kind, dtype)
    rows = make_row_optimizer(store, optimizer) if loss_of.config.centre_kind == "trainable" else None
    own = teacher_store(p, world, taught[0], dtype, unseen) if taught else None
    centres = Centres(store, world, SCALE, phase.centres, SEED, rows, splits, soft=soft_targets(phase, own, noise))
    terms = Terms(phase.terms, TermSetting(world, len(p.centres)))
    embeddings = taught[1] if taught else p.teacher
    gradients, losses = [], []
    for part in torch.arange(len(p.labels)).chunk(splits):
        mine = part.chunk(world.size)[world.rank]
        x, f = p.student[mine].to(store.length.dtype).requires_grad_(), embeddings[mine]
        centres.begin(x, p.labels[mine]) if not method.startswith("ada") else None
        centres.teach(f, RECORDS[mine])
        outcome = loss_of.loss(centres, x, p.labels[mine], p.teacher[mine])
        outcome = terms.added_to(outcome, TermInputs(x, p.labels[mine], f, world, centres))
        outcome.loss.backward()
        gradients.append(x.grad)
        losses.append(outcome.loss.detach())
    centres.step(optimizer.lr)
    return {
        "loss": torch.stack(losses), "gradient": gradients, "centres": centres.store.read(slice(None)),
        "seen": centres.store.seen, "values": outcome.values,
    }  # fmt: skip


def teacher_store(
    p: dense.Problem, world: World, rows: Tensor, dtype: torch.dtype, unseen: Tensor | None
) -> CentreStore:
    shard = shard_of(len(rows), world.rank, world.size)
    store = CentreStore.empty(shard, len(rows), rows.shape[1], dtype, torch.device("cpu"), skip_unseen=True)
    own = torch.arange(shard.start, shard.stop)
    kept = (own if unseen is None else own[~unseen[own]]) - shard.start
    store.fill(kept, rows[shard.start + kept].to(store.length.dtype))
    return store
