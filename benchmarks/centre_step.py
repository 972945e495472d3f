"""Measure class-centre steps against the materialised reference and against the floor, all in one run.

    python benchmarks/centre_step.py --kind fixed ema trainable --classes 200000 --batch 256 [--json] [--out FILE]

Every combination of --kind, --classes, --backend, --store, --memory, --products and --sample-rate is measured:

- step: the engine, one rank: the update of the centres (EMA, or second sweep with momentum SGD), the sweep, an
  ArcFace margin, the loss and its backward pass to the embeddings.
- reference: what is usually written: an (N, C) logits tensor, margin at the target, cross-entropy, autograd;
  for trainable centres a dense gradient and torch.optim.SGD. Centres that move are normalised each step. All classes
  take part, whatever the sample rate. Left out where it would not fit into the memory that is free.
- products: x W^T, then P W into tensors that exist already, over at most 262144 rows; no exp, no loss. They give the
  rate of matrix products of this machine.
- floor: 4 N S D flops at that rate, 8 N S D where centres are trained; S = sample rate x C.

--term adds a term of soft targets (T = 4) to the step, with teacher's centres of their own unless the student's are
fixed. Its floor has five products of 2 N S D flops for logit_kd (gkd: seven), three more where centres are trained, at
the rate of its own: x W^T, f V^T and three times P W, by what the engine multiplies with. "alone": the sums of logit_kd
without the cross-entropy, against four.

Reference and products multiply in the precision of the step ("precision"): float32 without TF32, or bfloat16 operands
with float32 sums (CUDA: autocast and bfloat16 tensors; CPU: oneDNN's setting, which the engine uses as well, where the
processor rounds by it). Where that is bfloat16, `over_fp32_products` is the step against the same flops at the rate of
float32 products, `fp32_products_flops`, measured beside; where it is float32, that ratio is `over_floor`.

Runs are interleaved; seconds are medians, with --clock processor of the process's own time, for a machine that others
use as well (with OMP_NUM_THREADS=1). Peak extra bytes: beyond the centres and, where trainable, their momentum;
with --memory host also beyond the two windows, with a CUDA graph beyond what it keeps. What the configuration refuses
and what has no room in the memory that is free is "left_out", with the reason. FILE is written anew after every
combination.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from centre_cases import (
    MULTIPLIED,
    cases,
    centres_config,
    facts_of,
    name_of,
    reference_fits,
    refused,
    rounded,
    without_room,
)
from measure import interleaved_seconds, machine, medians, peak_extra_bytes, rounding
from prettytable import PrettyTable
from term_cases import PRODUCTS, alone, plain, soft_targets, term_of, usual_term
from torch import Tensor

from partialkd.centres import Centres, CentreStore
from partialkd.centres.moving_average import move_ema
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.centres.store import DTYPES
from partialkd.config import CentresConfig, OptimizerConfig
from partialkd.methods.margins import arc_margin, margin_softmax
from partialkd.run.out_of_memory import is_out_of_memory
from partialkd.storage.atomic_files import write_text
from partialkd.world.world import World

SCALE, MARGIN, LR = 64.0, 0.45, 0.1
SGD = OptimizerConfig(lr=LR, momentum=0.9, weight_decay=5e-4)
KINDS = ("fixed", "ema", "trainable")
FILLED_AT_ONCE = 1 << 16  # rows
NEW_LINE = "\n"
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Step = Callable[[], Any]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    backends = get_args(CentresConfig.model_fields["backend"].annotation)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=["fixed"])
    parser.add_argument("--backend", nargs="+", choices=backends, default=["chunked"])
    parser.add_argument("--classes", nargs="+", type=int, default=[200_000])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--sample-rate", nargs="+", type=float, default=[1.0])
    parser.add_argument("--store", nargs="+", choices=tuple(DTYPES), default=["fp32"])
    parser.add_argument("--memory", nargs="+", choices=("device", "host"), default=["device"])
    parser.add_argument("--products", nargs="+", choices=("auto", "fp32", "bf16"), default=["auto"])
    parser.add_argument("--chunk-rows", type=int)
    parser.add_argument("--term", choices=tuple(PRODUCTS), default="none")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--go-on", action="store_true", help="leave out what fails, with the reason; status 1 then")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    args = parser.parse_args()
    for backend in ("fused", "gemm", "graphed"):
        if backend in args.backend and not torch.cuda.is_available():
            parser.error(f"--backend {backend}: needs a GPU; use chunked")
    return args


def make_store(args: argparse.Namespace, device: torch.device, seed: int = 0) -> CentreStore:
    """Random centres, all seen, made where they stay."""
    torch.manual_seed(seed)
    device = torch.device("cpu") if args.memory == "host" else device
    store = CentreStore.empty(range(args.classes), args.classes, args.dim, DTYPES[args.store], device)
    for start in range(0, args.classes, FILLED_AT_ONCE):
        stop = min(start + FILLED_AT_ONCE, args.classes)
        store.fill(slice(start, stop), torch.randn(stop - start, args.dim, device=device))
    return store


def make_inputs(args: argparse.Namespace, store: CentreStore, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """-> student (N, D), teacher (N, D), labels (N,)."""
    labels = torch.randint(args.classes, (args.batch,), device=store.device)
    centres, noise = store.read(labels), torch.randn(2, args.batch, args.dim, device=store.device)
    return (centres + noise[0]).to(device), (centres + 0.5 * noise[1]).to(device), labels.to(device)


def engine_step(
    args: argparse.Namespace, store: CentreStore, inputs: tuple[Tensor, ...], taught: CentreStore | None
) -> Step:
    """taught: the teacher's own centres; None: the student's, if any."""
    student, teacher, labels = inputs
    optimizer = make_row_optimizer(store, SGD) if args.kind == "trainable" else None
    soft = soft_targets(args, SCALE, taught)
    centres = Centres(store, World(device=student.device), SCALE, centres_config(args), optimizer=optimizer, soft=soft)
    term = term_of(args, centres)

    def look(own: Any) -> Tensor:
        return move_ema(own, weighted=True, first_sight=True, renormalise=False)

    def step() -> Any:
        x = student.clone().requires_grad_()
        moves = args.kind == "ema"
        centres.teach(teacher)
        found = centres.contrast(x, labels, teacher if moves else None, look if moves else None)
        loss = margin_softmax(found.negative, arc_margin(found.target, MARGIN), SCALE)
        (loss + term(x, labels, teacher)).backward()
        centres.step(LR)
        assert x.grad is not None
        return x.grad

    return step


def materialised_step(
    kind: str, store: CentreStore, inputs: tuple[Tensor, ...], half: bool, taught: CentreStore | None
) -> Step:
    """half: products of bfloat16 numbers, all else in float32. taught: of the term, or None."""
    student, teacher, labels = inputs
    rows = store.read(slice(None)).to(student.device)
    weight = F.normalize(rows) if kind == "fixed" else rows
    if half and kind == "fixed" and weight.is_cuda:
        weight = weight.bfloat16()  # once, not at every step
    weight.requires_grad_(kind == "trainable")
    optimizer = torch.optim.SGD([weight], LR, momentum=SGD.momentum, weight_decay=SGD.weight_decay)
    known = taught and taught.directions(slice(None)).to(student.device)

    def step() -> Any:
        with rounding(half, student.device):
            return gradient()

    def gradient() -> Any:
        x = student.clone().requires_grad_()
        unit = F.normalize(x)
        if kind == "ema":
            f_t = F.normalize(teacher)
            alpha = ((unit.detach() * f_t).sum(1) * (F.normalize(weight[labels]) * f_t).sum(1)).clamp(0, 1)[:, None]
            weight[labels] = alpha * weight[labels] + (1 - alpha) * f_t
        cosine = (unit @ (weight if kind == "fixed" else F.normalize(weight)).T).float()
        target = cosine.gather(1, labels[:, None])
        logits = SCALE * cosine.scatter(1, labels[:, None], arc_margin(target, MARGIN))
        loss = F.cross_entropy(logits, labels)
        if known is not None:
            loss = loss + usual_term(cosine, F.normalize(teacher), known, SCALE)
        loss.backward()
        if kind == "trainable":
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert x.grad is not None
        return x.grad

    return step


def plain_products(
    args: argparse.Namespace, store: CentreStore, inputs: tuple[Tensor, ...], half: bool, taught: CentreStore | None
) -> tuple[Step, float]:
    """-> the step, its flops. half: of bfloat16 numbers. taught: those of a term."""
    device = inputs[0].device
    dtype = torch.bfloat16 if half and device.type == "cuda" else torch.float32
    weight = store.read(slice(0, min(args.classes, MULTIPLIED))).to(device, dtype)
    x = F.normalize(inputs[0]).to(dtype)
    if taught is not None:
        rows = taught.read(slice(0, len(weight))).to(device, dtype)
        five = plain(args, x, F.normalize(inputs[1]).to(dtype), weight, rows)
        return five, 10.0 * args.batch * len(weight) * args.dim
    terms, total = x.new_empty(len(x), len(weight)), torch.empty_like(x)

    def step() -> Any:
        with rounding(half, device):  # autocast leaves products into given tensors alone
            torch.mm(x, weight.T, out=terms)
            return torch.mm(terms, weight, out=total)

    return step, 4.0 * args.batch * len(weight) * args.dim


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    store, half = make_store(args, device), rounded(args, device)
    inputs = make_inputs(args, store, device)
    softened = args.term != "none"
    taught = (store if args.kind == "fixed" else make_store(args, device, seed=1)) if softened else None
    step = engine_step(args, store, inputs, None if taught is store else taught)
    products, flops = plain_products(args, store, inputs, half, taught)
    variants: dict[str, Step] = {"products": products}
    if half:
        variants["fp32_products"] = plain_products(args, store, inputs, half=False, taught=taught)[0]
    if reference_fits(args, device):
        variants["reference"] = materialised_step(args.kind, store, inputs, half, taught)
    if args.term == "logit_kd" and taught and args.sample_rate == 1 and args.memory == "device":
        variants["alone"] = alone(args, store, taught, inputs, SCALE)
    variants["step"] = step
    seconds = medians(interleaved_seconds(variants, args.runs, device, clock=CLOCKS[args.clock]))
    how = {"precision": "bf16" if half else "fp32", "clock": args.clock, "runs": args.runs}
    result = {**facts_of(args), **how, "seconds": seconds["step"]}
    result |= against_products(args, flops, seconds)
    result["peak_extra_bytes"] = peak_extra_bytes(variants["step"], device)
    if "reference" in variants:
        result["reference_seconds"] = seconds["reference"]
        result["speedup"] = seconds["reference"] / seconds["step"]
        result["reference_peak_extra_bytes"] = peak_extra_bytes(variants["reference"], device)
    return result


def against_products(args: argparse.Namespace, flops: float, seconds: dict[str, float]) -> dict[str, float]:
    """The floor, the ratio to it, and the ratio to float32 products where those were measured beside."""
    sums, gradients = PRODUCTS[args.term]
    passes = 2 * (sums + gradients * (args.kind == "trainable"))
    rates = {name: flops / seconds[name] for name in ("products", "fp32_products") if name in seconds}
    work = passes * args.batch * args.classes * args.sample_rate * args.dim
    floors = {name: work / rate for name, rate in rates.items()}
    result = {
        "floor_seconds": floors["products"],
        "over_floor": seconds["step"] / floors["products"],
        "products_flops": rates["products"],
    }
    if "alone" in seconds:
        result["alone_seconds"] = seconds["alone"]
        result["alone_over_floor"] = seconds["alone"] / (floors["products"] * 8 / passes)
    if "fp32_products" in floors:
        result["over_fp32_products"] = seconds["step"] / floors["fp32_products"]
        result["fp32_products_flops"] = rates["fp32_products"]
    return result


def measure_all(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Every combination; what is there so far is in --out after each."""
    measurements: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    result = {**machine(device), "measurements": measurements, "left_out": left_out}
    for case in cases(args):
        gc.collect()  # what is left of the one before
        why = refused(case) or without_room(case, device)
        try:
            if not why:
                measurements.append(measure(case, device))
        except Exception as error:
            if not (args.go_on or is_out_of_memory(error)):
                raise
            why = f"{type(error).__name__}: {str(error).strip().partition(NEW_LINE)[0]}"
            result["failed"] = result.get("failed", 0) + (not is_out_of_memory(error))
        if why:
            left_out.append({**facts_of(case), "why": why})
        if args.out:
            write_text(args.out, json.dumps(result, indent=2) + "\n")
    return result


def table_of(results: list[dict[str, Any]]) -> PrettyTable:
    columns = ["seconds", "of the floor", "of fp32 products", "extra MB", "reference s", "faster by"]
    table = PrettyTable(["centres", "classes", "rate", *columns])
    for one in results:
        ratios = [f"{one['over_floor']:.2f}", f"{one.get('over_fp32_products', one['over_floor']):.2f}"]
        figures = [f"{one['seconds']:.4f}", *ratios, f"{one['peak_extra_bytes'] / 1e6:.1f}"]
        reference = ["does not fit", ""]
        if "speedup" in one:
            reference = [f"{one['reference_seconds']:.4f}", f"{one['speedup']:.2f}"]
        table.add_row([name_of(one), one["classes"], one["sample_rate"], *figures, *reference])
    return table


def main() -> int:
    args = parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = measure_all(args, device)
    status = 1 if result.get("failed") else 0
    if args.json:
        print(json.dumps(result))
        return status
    print(table_of(result["measurements"]))
    for one in result["left_out"]:
        print(f"left out: {name_of(one)}, {one['classes']} classes at rate {one['sample_rate']}: {one['why']}")
    return status


if __name__ == "__main__":
    sys.exit(main())
