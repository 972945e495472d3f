"""What checkpoints cost training: no saving, saving in the step, and saving behind it, side by side in one run.

    python benchmarks/checkpoint_cost.py --classes 100000 --dim 512 --batch 64 --every 50 [--json] [--out FILE]
    torchrun --nproc_per_node=N benchmarks/checkpoint_cost.py ...

The step: a student (DeepSpeed, SGD with momentum) on random images, ArcFace over trainable centres with momentum; what
a run saves is taken as training does (training/state.py). A block is `every` steps with one save after the first of
them; blocks of all kinds alternate, after a warm-up of each. A block in the background ends when its checkpoint is
published, so that no work is left over for the next kind: what `every` steps do not hide counts.

- seconds_a_step: median over blocks, the save shared among the block's steps; overhead: over a block without saving.
- stall: how long training stands still in the step that saves, median.
- hidden: saving in the step would have taken that long; the share of it that a block in the background does not show.

On a CPU the thread that writes takes time from the training itself; on a GPU it only shares the host.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import machine, wait_for
from prettytable import PrettyTable

from partialkd.centres import Centres, CentreStore
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.checkpoint.saver import Saver
from partialkd.config import ArcFaceConfig, ModelConfig, PhaseConfig
from partialkd.methods import make_method
from partialkd.models import build_model
from partialkd.training.state import Parts, capture
from partialkd.training.student import Student
from partialkd.world.shard import shard_of
from partialkd.world.world import World

KINDS = ("none", "in the step", "in the background")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilefacenet")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64, help="images a step, over all ranks")
    parser.add_argument("--every", type=int, default=50, help="steps from save to save")
    parser.add_argument("--rounds", type=int, default=3, help="blocks of each kind")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    return parser.parse_args()


class Training:
    """One rank's student and centres, on images drawn once."""

    def __init__(self, args: argparse.Namespace, world: World) -> None:
        method = ArcFaceConfig(name="arcface")
        model = ModelConfig(name=args.model, width=args.width, embedding_dim=args.dim)
        phase = PhaseConfig(model=model, method=method, global_batch=args.batch, epochs=1000)
        torch.manual_seed(0)
        self.world, self.method = world, make_method(method)
        self.student = Student(build_model(model, args.image_size), phase, world, 1000)
        shard = shard_of(args.classes, world.rank, world.size)
        store = CentreStore.random(shard, args.classes, args.dim, torch.float32, world.device, 0)
        optimizer = make_row_optimizer(store, phase.optimizer)
        self.centres = Centres(store, world, method.scale, phase.centres, 0, optimizer)
        each = args.batch // world.size
        self.images = torch.randn(each, 3, args.image_size, args.image_size, device=world.device)
        self.labels = torch.randint(args.classes, (each,), device=world.device)

    def step(self) -> None:
        embeddings = self.student.embed(self.images)
        x = embeddings.detach().requires_grad_()
        self.method.loss(self.centres, x, self.labels, None).loss.backward()
        assert x.grad is not None
        self.student.backward(embeddings, x.grad)
        lr = self.student.lr
        self.student.step()
        self.centres.step(lr)

    def save(self, saver: Saver) -> Path:
        return saver.save(capture(Parts(self.student, self.centres, centres_move=True), {"epoch": 0, "samples": 0}))


@dataclass(frozen=True)
class Block:
    """What one took."""

    seconds: float  # of all its steps
    stall: float  # of the call that saves
    path: Path | None


def run_block(training: Training, saver: Saver | None, every: int) -> Block:
    """`every` steps, a save after the first."""
    world = training.world
    world.barrier()
    start = time.perf_counter()
    training.step()
    wait_for(world.device)
    stalled, path = time.perf_counter(), training.save(saver) if saver else None
    stall = time.perf_counter() - stalled
    for _ in range(every - 1):
        training.step()
    if saver:
        saver.wait()
    wait_for(world.device)
    world.barrier()
    return Block(time.perf_counter() - start, stall, path)


def measure(args: argparse.Namespace, world: World, folder: Path) -> dict[str, Any]:
    training = Training(args, world)
    savers = {kind: Saver(folder / kind, world, 1, kind == KINDS[2]) if kind != "none" else None for kind in KINDS}
    blocks: dict[str, list[Block]] = {kind: [] for kind in KINDS}
    for saver in savers.values():
        run_block(training, saver, 2)
    for _ in range(args.rounds):
        for kind, saver in savers.items():
            blocks[kind].append(run_block(training, saver, args.every))
    path = blocks[KINDS[2]][-1].path
    assert path is not None
    keys = ("model", "width", "image_size", "classes", "dim", "batch", "every", "rounds")
    return {
        **{key: getattr(args, key) for key in keys},
        "world_size": world.size,
        "checkpoint_bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        **summary(blocks, args.every),
        "checksum_bytes_per_second": checksum_speed(),
        **machine(world.device),
    }


def summary(blocks: dict[str, list[Block]], every: int) -> dict[str, Any]:
    block = {kind: statistics.median(one.seconds for one in found) for kind, found in blocks.items()}
    stall = {kind: statistics.median(one.stall for one in found) for kind, found in blocks.items()}
    plain, direct, behind = (block[kind] for kind in KINDS)
    return {
        "seconds_a_step": {kind: seconds / every for kind, seconds in block.items()},
        "overhead": {kind: block[kind] / plain - 1 for kind in KINDS[1:]},
        "stall_seconds": {kind: stall[kind] for kind in KINDS[1:]},
        "hidden": 1 - (behind - plain) / (direct - plain) if direct > plain else None,
        "block_seconds": {kind: [one.seconds for one in found] for kind, found in blocks.items()},
    }


def checksum_speed() -> float:
    data = bytes(32 << 20)
    start = time.perf_counter()
    zlib.crc32(data)
    return len(data) / (time.perf_counter() - start)


def table_of(result: dict[str, Any]) -> str:
    table = PrettyTable(["saving", "seconds a step", "overhead", "stall, seconds"])
    for kind, seconds in result["seconds_a_step"].items():
        saves = kind in result["overhead"]
        cost = [f"{result['overhead'][kind]:.1%}", f"{result['stall_seconds'][kind]:.2f}"] if saves else ["", ""]
        table.add_row([kind, f"{seconds:.3f}", *cost])
    return f"{table}\n{result['checkpoint_bytes'] / 1e6:.0f} MB, one save in {result['every']} steps"


def main() -> None:
    args = parse_args()
    with World.start() as world, tempfile.TemporaryDirectory(dir=args.folder) as made:
        result = measure(args, world, Path(world.broadcast_object(made)))
        world.barrier()
        if not world.is_main:
            return
        print(json.dumps(result) if args.json else table_of(result))
        if args.out:
            args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
