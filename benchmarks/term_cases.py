"""Terms that go along with a centre step: the teacher's side, the products that are theirs, and the usual way."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from partialkd.centres import Centres, CentreStore
from partialkd.centres.row_filter import RowFilter
from partialkd.centres.soft_targets import SoftTargets
from partialkd.centres.sweeps.base import Queries
from partialkd.centres.sweeps.fastest_products import make_products
from partialkd.centres.sweeps.soft import SoftQueries, SoftSweep
from partialkd.config.terms import GkdTermConfig, LogitKdTermConfig
from partialkd.methods.terms import TERMS, TermInputs, TermSetting
from partialkd.world.world import World

CONFIGS = {"logit_kd": LogitKdTermConfig(name="logit_kd"), "gkd": GkdTermConfig(name="gkd")}
# Products of N x S x D of a step, cross-entropy included: of the sums, and more where rows are trained.
PRODUCTS = {"none": (2, 2), "logit_kd": (5, 3), "gkd": (7, 3)}
TEMPERATURE = 4.0


def soft_targets(args: argparse.Namespace, scale: float, taught: CentreStore | None) -> SoftTargets | None:
    """What the engine is given for the term. taught: the teacher's own centres; None: the student's."""
    if args.term == "none":
        return None
    config = CONFIGS[args.term]
    groups = (config.share, config.most) if isinstance(config, GkdTermConfig) else (None, 0)
    return SoftTargets(TEMPERATURE, scale, taught, *groups)


def term_of(args: argparse.Namespace, centres: Centres) -> Callable[[Tensor, Tensor, Tensor], Tensor | float]:
    """-> (student (N, D), labels (N,), teacher (N, D)) -> the term's value."""
    if args.term == "none":
        return lambda *_: 0.0
    term = TERMS[type(CONFIGS[args.term])](CONFIGS[args.term], TermSetting())
    return lambda student, labels, teacher: term.loss(TermInputs(student, labels, teacher, World(), centres))


def usual_term(cosine: Tensor, teacher: Tensor, rows: Tensor, scale: float) -> Tensor:
    """logit_kd over tensors of logits: cosine (N, C) of the student, rows (C, D) the teacher's unit centres."""
    with torch.no_grad():
        wanted = (scale / TEMPERATURE * (teacher @ rows.T).float()).softmax(1)
    found = (scale / TEMPERATURE * cosine).log_softmax(1)
    return TEMPERATURE**2 * F.kl_div(found, wanted, reduction="batchmean")


def alone(
    args: argparse.Namespace, store: CentreStore, taught: CentreStore, inputs: tuple[Tensor, ...], scale: float
) -> Callable[[], Any]:
    """The sums of logit_kd without those of the cross-entropy: four products."""
    student, teacher, labels = inputs
    products = make_products(args.products, student.device)
    sweep = SoftSweep(scale, scale, TEMPERATURE, products, args.chunk_rows)
    x, f = F.normalize(student), F.normalize(teacher)
    everything = RowFilter(len(store.shard), labels[:0])
    return lambda: sweep.sums(
        store, SoftQueries(Queries(x, torch.ones_like(labels, dtype=torch.bool), labels, everything), f, taught), False
    )


def plain(args: argparse.Namespace, x: Tensor, f: Tensor, weight: Tensor, taught: Tensor) -> Callable[[], Any]:
    """The term's products of the sums, into tensors that exist already: x W^T, f V^T, and P W three times."""
    products = make_products(args.products, x.device) if x.dtype == torch.float32 else None
    terms, total = x.new_empty(len(x), len(weight)), torch.empty_like(x)
    multiply = products.multiply if products else lambda a, b, out: torch.mm(a, b, out=out)

    def step() -> Tensor:
        multiply(x, weight.T, terms)
        multiply(f, taught.T, terms)
        for _ in range(3):
            multiply(terms, weight, total)
        return total

    return step
