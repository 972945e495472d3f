"""Class centres over several ranks: problems, stores, one step of ours and of the dense reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from helpers import dense
from helpers.ranks import run
from partialkd.centres import Centres, CentreStore
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.centres.sampling import Sampling
from partialkd.config import CentresConfig, OptimizerConfig
from partialkd.config.load import parse_config
from partialkd.methods import make_method
from partialkd.world.shard import shard_of
from partialkd.world.world import World

SEED = 5
SCALE = 16.0
SGD = OptimizerConfig(lr=0.3, momentum=0.9, weight_decay=0.01)
ADAMW = OptimizerConfig(name="adamw", lr=0.05, weight_decay=0.1)
METHODS: dict[str, dict[str, Any]] = {
    "arcface": {"name": "arcface", "margin": {"m2": 0.5}},
    "combined": {"name": "arcface", "margin": {"m1": 1.1, "m2": 0.3, "m3": 0.2}},
    "straight": {"name": "arcface", "margin": {"m2": 0.5, "gradient": "straight_through"}},
    "cosface": {"name": "cosface", "margin": 0.35},
    "arcdistill": {"name": "arcdistill", "margin": 0.45},
    "cosdistill": {"name": "cosdistill", "margin": 0.35},
    "ada": {"name": "adadistill", "weighted": False},
    "ada_weighted": {"name": "adadistill"},
    "ada_cos": {"name": "adadistill", "kind": "cos", "margin": 0.35},
    "ada_published": {"name": "adadistill", "first_sight": False},
    "ada_poster": {"name": "adadistill", "clip": "poster"},
    "margindistillation": {"name": "margindistillation"},
}
NAMED: dict[str, dict[str, Any]] = {
    "curricular": {"name": "trained_centres", "margin": {"name": "curricular"}},
    "elastic_plus": {"name": "trained_centres", "margin": {"name": "elastic_cos", "plus": True}},
    "ada_adaface": {"name": "adadistill", "margin": {"name": "adaface", "geometry": 3.0}},
    "ada_curricular": {"name": "adadistill", "margin": {"name": "curricular"}},
    "magface": {"name": "teacher_centres", "margin": {"name": "magface"}},
}


Step = Callable[[World, str, dense.Problem, dict[str, Any]], dict[str, Any]]


def method_of(name: str, scale: float = SCALE) -> Any:
    tree = {
        "run": {"name": "t"}, "data": {"path": "x"}, "teacher": {"source": "onnx", "path": "t", "embedding_dim": 8},
        "student": {
            "model": {"name": "iresnet18", "embedding_dim": 8}, "method": {**(METHODS | NAMED)[name], "scale": scale},
            "epochs": 1, "global_batch": 1,
        },
    }  # fmt: skip
    return make_method(parse_config(tree).student.method)


def store_of(p: dense.Problem, world: World, kind: str, dtype: torch.dtype, skip_unseen: bool = False) -> CentreStore:
    shard = shard_of(len(p.centres), world.rank, world.size)
    store = CentreStore.empty(shard, len(p.centres), p.centres.shape[1], dtype, p.centres.device, skip_unseen)
    fill_seen(store, p.centres[shard.start : shard.stop], p.seen[shard.start : shard.stop])
    return store


def fill_seen(store: CentreStore, centres: Tensor, seen: Tensor) -> None:
    """Write centres (R, D), of which those of `seen` (R,) bool have been seen."""
    centres = centres.to(store.length.dtype)
    store.write(slice(None), centres)
    store.fill(seen.nonzero().squeeze(1), centres[seen])


def one_step(world: World, name: str, p: dense.Problem, settings: dict[str, Any]) -> dict[str, Any]:
    """One optimiser step of `name` on this rank's part of the batch; 'splits' micro-steps."""
    settings = dict(settings)
    method = method_of(name, settings.pop("scale", SCALE))
    optimizer, splits = settings.pop("optimizer", SGD), settings.pop("splits", 1)
    steps, dtype = settings.pop("steps", 1), settings.pop("dtype", torch.float64)
    store = store_of(p, world, method.config.centre_kind, dtype, settings.pop("skip_unseen", False))
    row_optimizer = make_row_optimizer(store, optimizer) if method.config.centre_kind == "trainable" else None
    centres = Centres(store, world, method.config.scale, CentresConfig(**settings), SEED, row_optimizer)
    gradients, losses, values = [], [], {}
    for _ in range(steps):
        gradients, losses = [], []
        for part in torch.arange(len(p.labels)).chunk(splits):
            mine = part.chunk(world.size)[world.rank]
            x = p.student[mine].to(store.length.dtype).requires_grad_()
            outcome = method.loss(centres, x, p.labels[mine], p.teacher[mine])
            outcome.loss.backward()
            gradients.append(x.grad)
            losses.append(outcome.loss.detach())
            values = outcome.values
        centres.step(optimizer.lr)
    store = centres.store
    return {
        "loss": torch.stack(losses), "gradient": gradients, "centres": store.read(slice(None)), "seen": store.seen,
        "values": values, "dtype": store.unit.dtype, "momentum": store.moments.get("momentum"),
    }  # fmt: skip


def assembled(results: list[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> loss (), gradient of the global mean (N, D), centres (C, D), seen (C,)."""
    loss = torch.stack([r["loss"] for r in results]).mean()
    splits = len(results[0]["gradient"])
    gradient = torch.cat([r["gradient"][k] for k in range(splits) for r in results]) / (len(results) * splits)
    return loss, gradient, torch.cat([r["centres"] for r in results]), torch.cat([r["seen"] for r in results])


def moved_by(name: str, p: dense.Problem):
    settings = METHODS[name]
    margin = settings.get("margin", 0.45)
    if name == "margindistillation":
        return lambda c: dense.arc(c, dense.margin_distillation_margins(p, 0.2, 0.5))
    if isinstance(margin, dict):
        m1, m2, m3 = margin.get("m1", 1.0), margin["m2"], margin.get("m3", 0.0)
        moved = lambda c: dense.falling(m1 * c.clamp(dense.EDGE - 1, 1 - dense.EDGE).acos() + m2) - m3
        return (lambda c: c + (moved(c) - c).detach()) if name == "straight" else moved
    return (lambda c: c - margin) if "cos" in name else (lambda c: dense.arc(c, margin))


def expected(name: str, p: dense.Problem, scale: float, optimizer: OptimizerConfig, steps: int = 1):
    """-> loss, gradient of the student (N, D), centres after the optimiser step (C, D)."""
    centres, seen = p.centres.clone(), p.seen.clone()
    if name.startswith("ada"):
        of = METHODS[name]
        centres, _ = dense.ada_centres(p, of.get("weighted", True), of.get("first_sight", True), of.get("clip", "code"))
        seen[p.labels] = True
    w = centres.clone().requires_grad_()
    trainable = METHODS[name]["name"] in ("arcface", "cosface")
    rule = {
        "sgd": lambda: torch.optim.SGD([w], optimizer.lr, momentum=0.9, weight_decay=optimizer.weight_decay),
        "adamw": lambda: torch.optim.AdamW([w], optimizer.lr, weight_decay=optimizer.weight_decay),
    }[optimizer.name]()
    x = p.student.clone().requires_grad_()
    for _ in range(steps):
        x.grad = None
        rule.zero_grad()
        loss = dense.cross_entropy(x, w, p, scale, moved_by(name, p))
        loss.backward()
        if trainable:
            used = p.kept if len(p.kept) else torch.ones(len(w), dtype=torch.bool, device=w.device)
            used = used | torch.nn.functional.one_hot(p.labels, len(w)).sum(0).bool()
            before = w.detach().clone()
            rule.step()
            w.data[~used] = before[~used]  # rows not used do not move
    return loss.detach(), x.grad, w.detach(), seen


def compare(
    name: str, p: dense.Problem, size: int, atol: float = 1e-10, step: Step = one_step, **settings: Any
) -> list[dict[str, Any]]:
    """Take a step on so many ranks and hold it to the dense reference -> what the ranks gave."""
    results = run(step, size, name, p, settings)
    loss, gradient, centres, seen = assembled(results)
    want = expected(name, p, settings.get("scale", SCALE), settings.get("optimizer", SGD), settings.get("steps", 1))
    close = lambda got, wanted: torch.testing.assert_close(got.double(), wanted, atol=atol, rtol=atol * 100)
    close(loss, want[0])
    close(gradient, want[1])
    close(centres, want[2])
    assert torch.equal(seen, want[3])
    return results


def problem(labels: str = "random", classes: int = 10, samples: int = 12, seed: int = 0) -> dense.Problem:
    return dense.make_problem(classes, samples, 8, labels, seed)


def sampled(p: dense.Problem, rate: float) -> dense.Problem:
    """The classes that the sampling keeps as negatives at step 0."""
    kept = torch.zeros(len(p.centres), dtype=torch.bool)
    for run_of_rows in Sampling(len(p.centres), rate, SEED).runs(range(len(p.centres)), step=0):
        kept[run_of_rows.start : run_of_rows.stop] = True
    kept[p.labels] = True
    return dense.Problem(p.centres, p.student, p.teacher, p.labels, p.seen, kept)
