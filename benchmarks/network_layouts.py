"""Measure how networks are laid out on the CPU: plain tensors against channels_last, compiled ones, and onnxruntime.

    python benchmarks/network_layouts.py --networks mobilefacenet iresnet18 vit_tiny [--runs 7] [--out FILE]

Of every network, embedding (eval mode, no gradient) and training (forward and backward): each variant's processor time
over that of the plain network, both measured in turn in one process; the median of the pairs' ratios and the smallest
and largest. Processor time of all threads, so that a machine that others use shows little of it. `difference`: of the
embeddings, relative to the plain network's largest number.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import machine
from torch import Tensor, nn

from partialkd.config import ModelConfig
from partialkd.export.onnx import to_onnx
from partialkd.models import build_model
from partialkd.models.network import Network
from partialkd.models.onnx_session import OnnxSession
from partialkd.storage.atomic_files import write_text

Step = Callable[[], Any]
SIZE, DIM = 112, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["mobilefacenet", "iresnet18", "vit_tiny"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also by torch.compile, which takes minutes")
    parser.add_argument("--onnx", action="store_true", help="also by onnxruntime, embedding only")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = {name: measured(name, args) for name in args.networks}
    text = json.dumps({**machine(torch.device("cpu")), "batch": args.batch, "networks": results}, indent=2)
    print(text)
    if args.out:
        write_text(args.out, text + "\n")


def measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The ratios of one network's variants, embedding and training."""
    torch.manual_seed(0)
    images = torch.rand(args.batch, 3, SIZE, SIZE) * 2 - 1
    plain = build_model(ModelConfig.model_validate({"name": name, "embedding_dim": DIM}), SIZE)
    with torch.no_grad():
        plain(images)
    variants = variants_of(plain.eval(), args)
    with torch.no_grad():
        rows = {kind: network(images) for kind, network in variants.items()}
    embedding = paired({kind: embed(network, images) for kind, network in variants.items()}, args.runs)
    if args.onnx:
        session = OnnxSession(to_onnx(plain, {}), name)
        run: Step = lambda: session.run(["embeddings"], {"images": images.numpy()})[0]
        rows["onnxruntime"] = torch.from_numpy(run())
        embedding |= paired({"plain": embed(plain, images), "onnxruntime": run}, args.runs)
    training = paired({kind: train(network.train(), images) for kind, network in variants.items()}, args.runs)
    largest = rows["plain"].abs().max()
    differences = {
        kind: float((x - rows["plain"]).abs().max() / largest) for kind, x in rows.items() if kind != "plain"
    }
    return {"embedding": embedding, "training": training, "difference": differences}


def variants_of(plain: Network, args: argparse.Namespace) -> dict[str, nn.Module]:
    """The same weights, laid out and run otherwise."""
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last.channels_last = True
    found: dict[str, nn.Module] = {"plain": plain, "channels_last": last}
    if args.compile:
        found["compiled"] = copy.deepcopy(plain)
        found["compiled"].compile(dynamic=False)
    return found


def embed(network: nn.Module, images: Tensor) -> Step:
    @torch.no_grad()
    def step() -> Tensor:
        return network(images)

    return step


def train(network: nn.Module, images: Tensor) -> Step:
    def step() -> None:
        network.zero_grad(set_to_none=True)
        network(images).square().sum().backward()

    return step


def paired(steps: dict[str, Step], runs: int) -> dict[str, dict[str, float]]:
    """Processor seconds of each variant over those of "plain" beside it."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(runs):
        for kind, step in steps.items():
            start = time.process_time()
            step()
            seconds[kind].append(time.process_time() - start)
    found = {"plain": {"seconds": statistics.median(seconds["plain"])}}
    for kind, values in seconds.items():
        if kind != "plain":
            ratios = [mine / plain for mine, plain in zip(values, seconds["plain"], strict=True)]
            found[kind] = {"of plain": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return found


if __name__ == "__main__":
    main()
