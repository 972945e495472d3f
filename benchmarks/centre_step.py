"""One class-centre step against the materialised reference and against the plain matrix products, in one run.

    python benchmarks/centre_step.py --kind ema --classes 200000 --batch 256 --dim 512 [--json] [--out FILE]

- step: the engine, one rank: the update of the centres (EMA, or second sweep with momentum SGD), the sweep, an
  ArcFace margin, the loss and its backward pass to the embeddings.
- reference: what is usually written: an (N, C) logits tensor, margin at the target, cross-entropy, autograd;
  for trainable centres a dense gradient and torch.optim.SGD. Centres that move are normalised each step.
- products: x W^T, then P W into tensors that exist already; no exp, no loss. 4NCD flops.

Runs are interleaved; seconds are medians. Peak extra bytes: beyond the centres and, where trainable, their momentum.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import interleaved_seconds, machine, medians, peak_extra_bytes
from prettytable import PrettyTable
from torch import Tensor

from partialkd.centres import Centres, CentreStore
from partialkd.centres.update import make_row_optimizer, move_ema
from partialkd.config import CentresConfig, OptimizerConfig
from partialkd.dist import World
from partialkd.margin import arc_margin, margin_softmax

SCALE, MARGIN, LR = 64.0, 0.45, 0.1
SGD = OptimizerConfig(lr=LR, momentum=0.9, weight_decay=5e-4)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["fixed", "ema", "trainable"], default="fixed")
    parser.add_argument("--backend", choices=["chunked", "reference", "fused", "auto"], default="chunked")
    parser.add_argument("--classes", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--sample-rate", type=float, default=1.0)
    parser.add_argument("--store", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--chunk-rows", type=int)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    args = parser.parse_args()
    if args.backend == "fused" and not torch.cuda.is_available():
        parser.error("--backend fused: needs a GPU; use chunked")
    return args


def make_inputs(args: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> student (N, D), teacher (N, D), labels (N,), centres (C, D)."""
    torch.manual_seed(0)
    centres = torch.randn(args.classes, args.dim, device=device)
    labels = torch.randint(args.classes, (args.batch,), device=device)
    noise = torch.randn(2, args.batch, args.dim, device=device)
    return centres[labels] + noise[0], centres[labels] + 0.5 * noise[1], labels, centres


def engine_step(args: argparse.Namespace, device: torch.device, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    student, teacher, labels, rows = inputs
    dtype = torch.bfloat16 if args.store == "bf16" else torch.float32
    store = CentreStore.empty(range(args.classes), args.classes, args.dim, dtype, device)
    store.write(slice(None), rows)
    store.seen[:] = True
    config = CentresConfig(
        sample_rate=args.sample_rate, store=args.store, backend=args.backend, chunk_rows=args.chunk_rows
    )
    optimizer = make_row_optimizer(store, SGD) if args.kind == "trainable" else None
    centres = Centres(store, World(device=device), SCALE, config, optimizer=optimizer)

    def look(own: Any) -> Tensor:
        return move_ema(own, weighted=True, first_sight=True, renormalise=False)

    def step() -> Tensor:
        x = student.clone().requires_grad_()
        moves = args.kind == "ema"
        found = centres.contrast(x, labels, teacher if moves else None, look if moves else None)
        margin_softmax(found.negative, arc_margin(found.target, MARGIN), SCALE).backward()
        centres.step(LR)
        assert x.grad is not None
        return x.grad

    return step


def materialised_step(kind: str, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    student, teacher, labels, rows = inputs
    weight = F.normalize(rows) if kind == "fixed" else rows.clone()
    weight.requires_grad_(kind == "trainable")
    optimizer = torch.optim.SGD([weight], LR, momentum=SGD.momentum, weight_decay=SGD.weight_decay)

    def step() -> Tensor:
        x = student.clone().requires_grad_()
        unit = F.normalize(x)
        if kind == "ema":
            f_t = F.normalize(teacher)
            alpha = ((unit.detach() * f_t).sum(1) * (F.normalize(weight[labels]) * f_t).sum(1)).clamp(0, 1)[:, None]
            weight[labels] = alpha * weight[labels] + (1 - alpha) * f_t
        cosine = unit @ (weight if kind == "fixed" else F.normalize(weight)).T
        target = cosine.gather(1, labels[:, None])
        logits = SCALE * cosine.scatter(1, labels[:, None], arc_margin(target, MARGIN))
        F.cross_entropy(logits, labels).backward()
        if kind == "trainable":
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert x.grad is not None
        return x.grad

    return step


def plain_products(inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    student, _, _, rows = inputs
    x, weight = F.normalize(student), F.normalize(rows)
    terms, total = x.new_empty(len(x), len(weight)), torch.empty_like(x)

    def step() -> Tensor:
        torch.mm(x, weight.T, out=terms)
        return torch.mm(terms, weight, out=total)

    return step


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    inputs = make_inputs(args, device)
    variants = {
        "step": engine_step(args, device, inputs),
        "reference": materialised_step(args.kind, inputs),
        "products": plain_products(inputs),
    }
    seconds = medians(interleaved_seconds(variants, args.runs, device))
    return {
        **{key: getattr(args, key) for key in ("kind", "backend", "store", "classes", "batch", "dim", "sample_rate")},
        "seconds": seconds["step"],
        "reference_seconds": seconds["reference"],
        "products_seconds": seconds["products"],
        "over_products": seconds["step"] / seconds["products"],
        "speedup": seconds["reference"] / seconds["step"],
        "peak_extra_bytes": peak_extra_bytes(variants["step"], device),
        "reference_peak_extra_bytes": peak_extra_bytes(variants["reference"], device),
        "runs": args.runs,
        **machine(device),
    }


def table_of(result: dict[str, Any]) -> PrettyTable:
    table = PrettyTable(["variant", "seconds", "of the products", "peak extra MB"])
    products = result["products_seconds"]
    for name, prefix in ((f"{result['kind']}, {result['backend']}", ""), ("materialised reference", "reference_")):
        seconds = result[f"{prefix}seconds"]
        memory = result[f"{prefix}peak_extra_bytes"] / 1e6
        table.add_row([name, f"{seconds:.4f}", f"{seconds / products:.2f}", f"{memory:.1f}"])
    table.add_row(["plain products", f"{products:.4f}", "1.00", ""])
    return table


def main() -> None:
    args = parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = measure(args, device)
    print(json.dumps(result) if args.json else table_of(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
