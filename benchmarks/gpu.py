"""Settle on one GPU, in 25 minutes, what no CPU can: tests, speed, memory, waits; and say whether targets are met.

    make gpu                       # all four stages, most valuable first
    make gpu STAGE=1               # one of them, at most eight minutes; then 2, 3, 4
    python benchmarks/gpu.py [--stage N] [--out FOLDER] [--minutes M] [--again] [--list] [--page]

Each stage is a list of items, each a command with a time limit. What it has found is written to
FOLDER/gpu_<device>_<item>.json, and gpu_<device>.md is the page of all results, written anew after every item: whoever
is cut off loses one item. An item that is there, of the same commit, is not run again (--again: all are); one that was
cut off or failed is. An item for which the stage's time does not suffice is left for the next call.
FOLDER: benchmarks/results. Wants torch of 2.11 or newer for CUDA, Triton, and the packages of the extra `train` without
DALI; no network. What a package is missing for is reported as failed, the rest runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_page import page
from measure import machine

from partialkd.storage.atomic_files import write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STAGE_MINUTES, ALL_MINUTES = 8.0, 25.0
PATIENCE = 30.0  # times the limits, where a CPU pretends
LEAST_SECONDS = 20.0  # an item is not begun with less
SHOWN = 1500  # characters of what a failed command said last
BACKENDS = ("chunked", "graphed", "gemm", "fused", "auto")  # a copy: this file needs no package of what it runs


@dataclass(frozen=True)
class Item:
    """A command of a stage; "{out}" stands for the file that it writes."""

    name: str
    stage: int
    seconds: float  # at most
    command: tuple[str, ...]


def centres(name: str, stage: int, seconds: float, *options: str) -> Item:
    command = (str(HERE / "centre_step.py"), "--json", "--go-on", "--out", "{out}", *options)
    return Item(name, stage, seconds, command)


def items(small: bool) -> list[Item]:
    """All items in their order. small: of sizes that a CPU can pretend with, for a rehearsal."""
    sizes = ("64", "200", "400", "600", "800") if small else ("125000", "1000000", "8000000", "125000000", "250000000")
    tiny = ("--batch", "16", "--dim", "16", "--runs", "1") if small else ("--batch", "1024", "--runs", "5")
    kinds, ours = ("--kind", "fixed", "ema", "trainable"), ("--backend", *BACKENDS)
    written, million = ("--json", "--out", "{out}"), ("--classes", sizes[1], "--store", "bf16")
    tests = (str(HERE / "gpu_tests.py"), "--out", "{out}", *(("--quick",) if small else ()))
    whole = (str(HERE / "gpu_job.py"), "--out", "{out}", *(("--small",) if small else ()))
    both = (str(HERE / "end_to_end.py"), *written, "--precision", "bf16")
    shape = ("--width", "0.25", "--dim", "16", "--size", "32", "--batch", "16", "--classes", "50", "--steps", "1")
    real = ("--batch", "512", "--workers", "12", "--classes", "100000", "--steps", "10")
    return [
        Item("tests", 1, 180, tests),
        centres("125k", 1, 150, *kinds, *ours, "--classes", sizes[0], "--store", "bf16", "fp32", *tiny),
        Item("waits", 1, 60, (str(HERE / "host_waits.py"), *written, "--classes", sizes[0], *tiny[:-2], *ours)),
        Item("rivals", 1, 90, (str(HERE / "rivals.py"), *written, "--classes", sizes[0], *tiny, *ours)),
        centres("1m", 2, 180, *kinds, *ours, "--classes", sizes[1], "--store", "bf16", "int8", *tiny),
        centres("8m", 2, 150, *kinds, "--backend", "auto", "--classes", sizes[2], "--store", "bf16", *tiny),
        centres("1m_fp32_products", 2, 90, "--classes", sizes[1], *ours, "--products", "fp32", *tiny),
        centres("most_bf16", 3, 120, "--classes", sizes[3], "--backend", "auto", "--store", "bf16", *tiny),
        centres("most_int8", 3, 120, "--classes", sizes[4], "--backend", "auto", "--store", "int8", *tiny),
        *(
            centres(f"chunk_{rows}", 3, 40, *kinds, *million, "--chunk-rows", rows, *tiny)
            for rows in (("16", "32") if small else ("4096", "8192", "16384", "32768"))
        ),
        centres("host", 3, 90, "--kind", "ema", "trainable", "--classes", sizes[2], "--memory", "host", "--sample-rate",
                "0.1", "--store", "bf16", *tiny),
        Item("end_to_end", 4, 180, (*both, *(shape if small else real))),
        Item("job", 4, 240, whole),
    ]  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, choices=(1, 2, 3, 4), help="(default: all)")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--minutes", type=float, help=f"at most (default: {STAGE_MINUTES:g}, all: {ALL_MINUTES:g})")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--small", action="store_true", help="small sizes and a long time, for a rehearsal")
    parser.add_argument("--list", action="store_true", help="only print the items")
    parser.add_argument("--page", action="store_true", help="only write the page of what is there")
    args = parser.parse_args()
    if not (args.list or torch.cuda.is_available()):
        parser.error("needs a GPU that torch sees")
    return args


def result_file(folder: Path, device: str, item: str) -> Path:
    return folder / f"gpu_{slug(device)}_{item}.json"


def slug(device: str) -> str:
    """Make "NVIDIA H200" nvidia_h200."""
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")


def found_before(path: Path, commit: str) -> bool:
    """Whether an item is done, of this commit."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return said.get("status") == "done" and said.get("commit") == commit


def run(item: Item, seconds: float, out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Run an item for at most so long -> what its file says; what it wrote before it was cut off counts."""
    part = out.with_suffix(".part")
    part.unlink(missing_ok=True)
    command = [sys.executable, *(word.replace("{out}", str(part)) for word in item.command)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        status = "done" if done.returncode == 0 else "failed"
        said = "" if status == "done" else (done.stdout + done.stderr)[-SHOWN:]
    except subprocess.TimeoutExpired:
        status, said = "cut off", f"after {seconds:.0f} s"
    result = {"status": status, "said": said, "took": time.monotonic() - start, "item": item.name, **facts}
    try:
        result["found"] = json.loads(part.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result["found"] = None
    part.unlink(missing_ok=True)
    write_text(out, json.dumps(result, indent=2) + "\n")
    return result


def main() -> int:
    args = parse_args()
    chosen = [item for item in items(args.small) if args.stage in (None, item.stage)]
    if args.list:
        for item in chosen:
            print(f"stage {item.stage}: {item.name}, at most {item.seconds:.0f} s")
        return 0
    facts = machine(torch.device("cuda"))
    device, commit = facts["device"], facts["commit"]
    args.out.mkdir(parents=True, exist_ok=True)
    patience = PATIENCE if args.small else 1.0
    minutes = args.minutes or patience * (ALL_MINUTES if args.stage is None else STAGE_MINUTES)
    end, left, bad = time.monotonic() + 60 * minutes, [], []
    for item in [] if args.page else chosen:
        out = result_file(args.out, device, item.name)
        if not args.again and found_before(out, commit):
            print(f"{item.name}: is there")
            continue
        seconds = min(patience * item.seconds, end - time.monotonic())
        if seconds < min(LEAST_SECONDS, item.seconds):
            left.append(item.name)
            continue
        result = run(item, seconds, out, facts)
        print(f"{item.name}: {result['status']} in {result['took']:.0f} s {result['said'][-300:]}", flush=True)
        bad += [item.name] if result["status"] != "done" else []
        write_page(args, device)
    print(f"{write_page(args, device)}: " + "; ".join(filter(None, [
        f"left for another call: {', '.join(left)}" if left else "",
        f"not done: {', '.join(bad)}" if bad else "",
    ])))  # fmt: skip
    return 1 if left or bad else 0


def write_page(args: argparse.Namespace, device: str) -> Path:
    """Write the page of all results that are there."""
    found = {}
    for item in items(args.small):
        path = result_file(args.out, device, item.name)
        if path.exists():
            found[item.name] = json.loads(path.read_text(encoding="utf-8"))
    out: Path = args.out / f"gpu_{slug(device)}.md"
    write_text(out, page(device, found, [item.name for item in items(args.small)], args.small))
    return out


if __name__ == "__main__":
    sys.exit(main())
