"""How a centre step grows with the ranks: bytes against the planner's, seconds against a model; one rank's share alone.

    python benchmarks/scaling.py --ranks 1 2 4 --classes 100000 [--json] [--out FILE]
    python benchmarks/scaling.py --share-of 8 --classes 1000000000 --store bf16 --local-batch 128 [--json]

The first starts that many processes joined by gloo on this machine, each with a thread, at a fixed local batch, and
runs the engine: contrast, an ArcFace margin, backward, step. Bytes are what each rank would send by ring algorithms,
from the tensors that World was handed; the planner's are those of its plan. A rank sweeps C / W rows for a batch of
W b samples, so the work of a rank stays what it was: seconds stay level as far as there is a core for every rank.
Ranks of one machine share its cores and memory, so the model of the time is measured by the same ranks in the same
runs: the step's matrix products and its collectives, each alone. scaling_model.py says what it leaves out.
"seconds" and the model's are the slowest rank's of each run, medians over runs; `over_model` is their ratio.

The second runs on one device what one of W ranks would compute, C / W rows against W b samples, without the ranks'
collectives. All of the batch's classes are its own, which is more than its share of them. 10^9 classes on 8 ranks are
129 GB a rank in bfloat16 (D = 512), for a device of 141 GB; a float32 store would be 257 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from centre_step import FILLED_AT_ONCE, LR, MARGIN, SCALE, SGD, Step
from measure import interleaved_seconds, machine, medians, peak_extra_bytes
from prettytable import PrettyTable
from scaling_model import NotingWorld, against_model, calls_of, side_by_side
from torch import Tensor

from partialkd.centres import Centres, CentreStore
from partialkd.centres.moving_average import move_ema
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.centres.store import DTYPES
from partialkd.config import CentresConfig, DistConfig
from partialkd.config.load import parse_config
from partialkd.methods.margins import arc_margin, margin_softmax
from partialkd.planner.step_cost import centre_wire
from partialkd.world.shard import shard_of
from partialkd.world.world import World, free_port

METHODS = {"fixed": "arcdistill", "ema": "adadistill", "trainable": "arcface"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--share-of", type=int, help="measure one rank's share of a job on so many, alone")
    parser.add_argument("--kind", choices=tuple(METHODS), default="ema")
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--local-batch", type=int, default=64)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--sample-rate", type=float, default=1.0)
    parser.add_argument("--store", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    parser.add_argument("--rank-of", type=int, help=argparse.SUPPRESS)  # in the processes that this starts
    args = parser.parse_args()
    if not args.share_of and args.classes < max(args.ranks):
        parser.error(f"--classes: at least one a rank, got {args.classes} for {max(args.ranks)} ranks")
    return args


def make_store(args: argparse.Namespace, shard: range, device: torch.device) -> CentreStore:
    """Random centres, all seen."""
    store = CentreStore.empty(shard, args.classes, args.dim, DTYPES[args.store], device)
    for start in range(0, len(shard), FILLED_AT_ONCE):
        stop = min(start + FILLED_AT_ONCE, len(shard))
        store.fill(slice(start, stop), torch.randn(stop - start, args.dim, device=device))
    return store


def engine_step(args: argparse.Namespace, world: World, store: CentreStore, samples: int) -> Step:
    """The step of one rank that owns `store` and has `samples` samples."""
    config = CentresConfig(sample_rate=args.sample_rate, store=args.store, backend=args.backend)
    optimizer = make_row_optimizer(store, SGD) if args.kind == "trainable" else None
    centres = Centres(store, world, SCALE, config, optimizer=optimizer)
    student, teacher = torch.randn(2, samples, args.dim, device=world.device)
    labels = torch.randint(args.classes, (samples,), device=world.device)

    def look(own: Any) -> Tensor:
        return move_ema(own, weighted=True, first_sight=True, renormalise=False)

    def step() -> None:
        x, ema = student.clone().requires_grad_(), args.kind == "ema"
        found = centres.contrast(x, labels, teacher if ema else None, look if ema else None)
        margin_softmax(found.negative, arc_margin(found.target, MARGIN), SCALE).backward()
        centres.step(LR)

    return step


def run_rank(args: argparse.Namespace) -> None:
    """One of the processes: prints its figures."""
    torch.set_num_threads(1)
    with World.start(DistConfig(device="cpu")) as started:
        world = NotingWorld(started.rank, started.size, started.local_rank, started.device)
        torch.manual_seed(world.rank)
        store = make_store(args, shard_of(args.classes, world.rank, world.size), world.device)
        step = engine_step(args, world, store, args.local_batch)
        calls = calls_of(step, world)
        seconds = side_by_side(args, step, store, calls, started)
        print(json.dumps({"bytes": sum(call.sent(world.size) for call in calls), "seconds": seconds}), flush=True)


def on_ranks(args: argparse.Namespace, size: int) -> dict[str, Any]:
    """-> figures of `size` processes: the same bytes on all, seconds against the model."""
    command = [sys.executable, __file__, *sys.argv[1:], "--rank-of", str(size)]
    places = {
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **places, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [process.communicate()[0] for process in started]
    failed = [rank for rank, process in enumerate(started) if process.returncode]
    if failed:
        raise SystemExit(f"ranks {failed} of {size} failed")
    figures = [json.loads(output.splitlines()[-1]) for output in outputs]
    planned = sum(centre_wire(_phase(args, size), args.local_batch, size).values())
    return {
        "ranks": size,
        "bytes": max(one["bytes"] for one in figures),
        "planned_bytes": planned,
        **against_model([one["seconds"] for one in figures]),
    }


def share(args: argparse.Namespace) -> dict[str, Any]:
    """One rank's part of a job on `share_of` ranks, on this device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    rows, batch = len(shard_of(args.classes, 0, args.share_of)), args.share_of * args.local_batch
    alone = argparse.Namespace(**{**vars(args), "classes": rows})
    world = World(device=device)
    step = engine_step(alone, world, make_store(alone, range(rows), device), batch)
    seconds = medians(interleaved_seconds({"step": step}, args.runs, device))["step"]
    used = peak_extra_bytes(step, device)
    return {"ranks": args.share_of, "rows": rows, "batch": batch, "seconds": seconds, "peak_extra_bytes": used}


def _phase(args: argparse.Namespace, size: int) -> Any:
    centres = {"sample_rate": args.sample_rate, "store": args.store}
    tree = {
        "run": {"name": "scaling"}, "data": {"path": "none"},
        "teacher": {"source": "onnx", "path": "none", "embedding_dim": args.dim},
        "student": {
            "model": {"name": "iresnet18", "embedding_dim": args.dim}, "method": {"name": METHODS[args.kind]},
            "epochs": 1, "global_batch": args.local_batch * size, "centres": centres,
        },
    }  # fmt: skip
    return parse_config(tree).student


def main() -> None:
    args = parse_args()
    if args.rank_of:
        run_rank(args)
        return
    if not args.share_of:
        torch.set_num_threads(1)  # as the ranks do, for the result file
    results = [share(args)] if args.share_of else [on_ranks(args, size) for size in args.ranks]
    device = torch.device("cuda" if args.share_of and torch.cuda.is_available() else "cpu")
    asked = {
        key: getattr(args, key) for key in ("kind", "classes", "local_batch", "dim", "sample_rate", "store", "runs")
    }
    result = {**machine(device), **asked, "backend": args.backend, "measurements": results}
    if args.json:
        print(json.dumps(result))
    else:
        table = PrettyTable(list(results[0]))
        table.add_rows([[f"{v:.4f}" if isinstance(v, float) else v for v in one.values()] for one in results])
        print(table)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
