"""Measure our centre step beside other ways to compute a cross-entropy over many classes, all in one run.

    python benchmarks/rivals.py [--kind fixed trainable] [--classes 200000] [--batch 256] [--backend chunked ...]
                                [--json] [--out FILE]

All compute the mean cross-entropy of x W^T, x (N, D) and W (C, D) of unit length times the scale, with the gradient to
x; "trainable": to W as well, and momentum SGD on it. Ours adds the ArcFace margin and normalises, the others do not.

- materialised: torch.nn.functional.cross_entropy of the (N, C) logits.
- torch, torch chunked: torch.nn.functional.linear_cross_entropy, without and with its options (torch 2.13 and newer).
- liger: LigerFusedLinearCrossEntropyLoss of liger-kernel. quack: chunked_linear_cross_entropy of quack-kernels.
- cce: linear_cross_entropy of Apple's cut-cross-entropy.
- ours <backend>: this package's step (centre_step.py).

One that is not installed, or does not run on the device, is "absent", with the reason. Seconds are medians of
interleaved runs (--clock processor: of the process's own time), peak bytes are beyond W and its momentum. On CUDA all
multiply bfloat16 numbers (W too, ours as --store says); on the CPU float32 ones. `off` is the relative difference of
the gradient to x from the materialised one, of those that compute the same, with the labels of other samples: with
their own a gradient may be so small that nothing but rounding is left of it.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from centre_step import CLOCKS, LR, SCALE, SGD, engine_step, make_inputs, make_store
from measure import interleaved_seconds, machine, medians, peak_extra_bytes
from prettytable import PrettyTable
from torch import Tensor

from partialkd.run.out_of_memory import is_out_of_memory
from partialkd.storage.atomic_files import write_text

Loss = Callable[[Tensor, Tensor, Tensor], Any]  # x (N, D), already scaled, W (C, D), labels (N,) -> () mean loss


def materialised(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy((x @ weight.T).float(), labels)


def _torch() -> Loss:
    function = F.linear_cross_entropy
    return lambda x, weight, labels: function(x, weight, labels)


def _torch_chunked() -> Loss:
    function = F.linear_cross_entropy
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda x, weight, labels: function(x, weight, labels, options=options)


def _liger() -> Loss:
    module = importlib.import_module("liger_kernel.transformers.fused_linear_cross_entropy")
    loss = module.LigerFusedLinearCrossEntropyLoss()
    return lambda x, weight, labels: loss(weight, x, labels)


def _quack() -> Loss:
    function = importlib.import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
    return lambda x, weight, labels: function(x, weight, labels, chunk_size=len(x))


def _cce() -> Loss:
    function = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return lambda x, weight, labels: function(x, weight, labels)


RIVALS: dict[str, Callable[[], Loss]] = {
    "torch": _torch, "torch chunked": _torch_chunked, "liger": _liger, "quack": _quack, "cce": _cce,
}  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", choices=("fixed", "trainable"), default=["fixed", "trainable"])
    parser.add_argument("--backend", nargs="+", default=["chunked"], help="of ours")
    parser.add_argument("--store", default=None, help="of ours (default: bf16 on CUDA, fp32 on the CPU)")
    parser.add_argument("--classes", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    return parser.parse_args()


class Their:
    """One step of a rival: loss, gradients and, where W is trained, SGD on it."""

    def __init__(self, loss: Loss, x: Tensor, weight: Tensor, labels: Tensor, trained: bool) -> None:
        self.loss, self.x, self.labels = loss, x, labels
        self.weight = weight.clone().requires_grad_() if trained else weight
        self.optimizer = None
        if trained:
            options = {"momentum": SGD.momentum, "weight_decay": SGD.weight_decay}
            self.optimizer = torch.optim.SGD([self.weight], LR, **options, foreach=False)

    def gradient(self) -> Tensor:
        """Compute the loss and its gradient to x."""
        x = self.x.clone().requires_grad_()
        found = self.loss(x * SCALE, self.weight, self.labels)
        (found[0] if isinstance(found, tuple) else found).backward()
        assert x.grad is not None
        return x.grad

    def __call__(self) -> None:
        self.gradient()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def measure(args: argparse.Namespace, kind: str, device: torch.device) -> dict[str, Any]:
    """All of them over one W."""
    half, trained = device.type == "cuda", kind == "trainable"
    store = make_store(as_step(args, kind, args.backend[0]), device)
    student, teacher, labels = make_inputs(as_step(args, kind, args.backend[0]), store, device)
    dtype = torch.bfloat16 if half else torch.float32
    weight, x = store.directions(slice(None)).to(dtype), F.normalize(student).to(dtype)
    others = labels.roll(1)
    exact = Their(materialised, x, weight, others, False).gradient()
    steps: dict[str, Callable[[], Any]] = {"materialised": Their(materialised, x, weight, labels, trained)}
    found: dict[str, dict[str, Any]] = {"materialised": {"off": 0.0}}
    absent: dict[str, str] = {}
    for name, opened in RIVALS.items():
        try:
            loss = opened()
            found[name] = {"off": _off(Their(loss, x, weight, others, trained).gradient(), exact)}
            steps[name] = Their(loss, x, weight, labels, trained)
        except Exception as error:  # of other libraries: not installed, not of this device, not of these shapes
            if is_out_of_memory(error):
                gc.collect()
            absent[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]
    for backend in args.backend:
        ours = as_step(args, kind, backend)
        name = f"ours {backend}"
        try:
            steps[name], found[name] = engine_step(ours, store, (student, teacher, labels), None), {}
            steps[name]()
        except (RuntimeError, ValueError) as error:  # the configuration's, the device's
            del steps[name], found[name]
            absent[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]
    seconds = medians(interleaved_seconds(steps, args.runs, device, clock=CLOCKS[args.clock]))
    for name, step in steps.items():
        found[name] |= {"seconds": seconds[name], "peak_extra_bytes": peak_extra_bytes(step, device)}
        found[name]["faster_than_materialised"] = seconds["materialised"] / seconds[name]
    facts = {key: getattr(args, key) for key in ("classes", "batch", "dim", "runs", "clock")}
    return {"kind": kind, **facts, "store": as_step(args, kind, "").store, "found": found, "absent": absent}


def as_step(args: argparse.Namespace, kind: str, backend: str) -> argparse.Namespace:
    """Give the options of centre_step.py for ours."""
    store = args.store or ("bf16" if torch.cuda.is_available() else "fp32")
    more = {"kind": kind, "backend": backend, "store": store, "memory": "device", "products": "auto"}
    return argparse.Namespace(**{**vars(args), **more, "sample_rate": 1.0, "chunk_rows": None, "term": "none"})


def _off(got: Tensor, exact: Tensor) -> float:
    return float((got.float() - exact.float()).norm() / exact.float().norm())


def table_of(result: dict[str, Any]) -> PrettyTable:
    table = PrettyTable(["W", "way", "seconds", "faster than materialised", "extra MB", "off"])
    for one in result["measurements"]:
        for name, got in one["found"].items():
            off = f"{got['off']:.1e}" if "off" in got else ""
            figures = [f"{got['seconds']:.4f}", f"{got['faster_than_materialised']:.2f}"]
            table.add_row([one["kind"], name, *figures, f"{got['peak_extra_bytes'] / 1e6:.0f}", off])
        for name, why in one["absent"].items():
            table.add_row([one["kind"], name, "absent", "", "", why[:60]])
    return table


def main() -> None:
    args = parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {**machine(device), "measurements": []}
    for kind in args.kind:
        gc.collect()
        result["measurements"].append(measure(args, kind, device))
        if args.out:
            write_text(args.out, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if args.json else table_of(result))


if __name__ == "__main__":
    main()
