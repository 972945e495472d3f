"""Images/s of the whole training step, with the teacher running and with its embeddings kept, side by side.

    python benchmarks/end_to_end.py [--teacher iresnet50] [--student mobilefacenet_gdc] [--batch 64] [--classes 20000]
                                    [--size 112] [--loader jpeg] [--steps 3] [--runs 3] [--compile] [--json]
                                    [--out FILE]

One rank. The records are procedural faces in an InsightFace folder, read, decoded and mirrored by the loader that
trains; the student is DeepSpeed's, the method AdaDistill over moving-average centres, the teacher a network of the
named kind with random weights, whose cost is that of a trained one. The ways run in turn, `steps` steps a run without
any clock within, and as many with one around every part.

- live: each batch goes through the teacher. cached: the teacher's embeddings come from a teacher cache (float16).
- compiled (--compile): live, with teacher.compile and student.compile. What compiling takes lies before the first step
  that is measured: `compile_seconds`, which opening the teacher and the first step take beyond those of "live".
- images/s, speed-ups of the step (`step_seconds`): medians over the runs without clocks, in which a device may still be
  at work on one part while the host begins the next.
- parts (`seconds`): of a step with clocks, which wait for the device before and after every part: in waiting for the
  loader, in the teacher (or in waiting for what was kept, which is part of the loader's), in the student (forward,
  backward and step) and in the centres (the loss over them and their move), medians over all such steps of a way; what
  is left of their "step" is the trainer's own.
- cache: seconds and bytes of making it, an image; after how many epochs it has paid for itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from measure import machine, wait_for
from prettytable import PrettyTable

from partialkd.centres.store import CentreStore
from partialkd.commands.embed import embed
from partialkd.config import Config
from partialkd.config.load import parse_config
from partialkd.context import RunContext
from partialkd.data.batch import FaceBatch
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.packing.face_drawing import draw_jpegs
from partialkd.data.sources.open import open_source
from partialkd.models import build_model
from partialkd.models.saved import save_model
from partialkd.teacher.cache import TeacherCache
from partialkd.teacher.network import open_teacher
from partialkd.training.trainer import Trainer
from partialkd.world.shard import shard_of
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

PARTS = ("loader", "teacher", "student", "centres")
DRAWN = 512  # different pictures; more records repeat them


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="iresnet50")
    parser.add_argument("--student", default="mobilefacenet_gdc")
    parser.add_argument("--width", type=float, default=1.0, help="of both networks")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--size", type=int, default=112, help="pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=20_000)
    parser.add_argument("--records", type=int, help="(default: four batches)")
    parser.add_argument("--loader", choices=["jpeg", "dali"], default="jpeg")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=3, help="in a run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also with teacher and student compiled")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    args = parser.parse_args()
    args.records = args.records or 4 * args.batch
    return args


def configured(args: argparse.Namespace, folder: Path) -> Config:
    """A run whose schedule is longer than it will last."""
    model = {"embedding_dim": args.dim, "width": args.width}
    teacher = {"path": str(folder / "teacher.safetensors"), "cache_dtype": "fp16"}
    return parse_config(
        {
            "run": {"name": "run", "folder": str(folder), "tensorboard": False},
            "data": {
                "path": str(folder / "data"), "image_size": args.size, "loader": args.loader, "workers": args.workers,
            },
            "teacher": {"source": "checkpoint", "model": {"name": args.teacher, **model}, **teacher,
                        "input": {"size": args.size}},
            "student": {
                "model": {"name": args.student, **model}, "method": {"name": "adadistill"}, "epochs": 1000,
                "global_batch": args.batch, "precision": args.precision,
                "optimizer": {"lr": 1e-4},
            },
            "evaluate": {"batch": args.batch},
        }
    )  # fmt: skip


def compiled(config: Config) -> Config:
    """The same with both networks compiled."""
    tree = config.model_dump(mode="json", exclude_none=True)
    for section in ("teacher", "student"):
        tree[section]["compile"] = True
    return parse_config(tree)


def make_inputs(args: argparse.Namespace, config: Config, folder: Path) -> None:
    """The records, of the first classes, and the teacher's file."""
    pictures = draw_jpegs(0, args.size, [(i % DRAWN, i // DRAWN) for i in range(min(args.records, DRAWN))])
    labels = sorted(i % args.classes for i in range(args.records))
    pack_records(folder / "data", ((pictures[i % DRAWN], k) for i, k in enumerate(labels)), args.classes, args.size)
    torch.manual_seed(0)
    assert config.teacher.model is not None
    network = build_model(config.teacher.model, args.size)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network(torch.rand(8, 3, args.size, args.size) * 2 - 1)  # running statistics, or its numbers would explode
    save_model(folder / "teacher.safetensors", network.eval(), config.teacher.model, args.size)


class Clock:
    """Seconds by part, of one way, while it is on."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.step, self.on = device, defaultdict[str, float](float), False
        self.steps: list[dict[str, float]] = []

    def around(self, part: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """`act`, whose seconds are added to its part of the step."""

        def timed(*arguments: Any) -> Any:
            if not self.on:
                return act(*arguments)
            wait_for(self.device)
            start = time.perf_counter()
            result = act(*arguments)
            wait_for(self.device)
            self.step[part] += time.perf_counter() - start
            return result

        return timed

    def medians(self) -> dict[str, float]:
        names = (*PARTS, "step")
        return {name: statistics.median(step.get(name, 0.0) for step in self.steps) for name in names}


class Way:
    """A trainer and its clock. teacher: what was kept of it; None: its network, opened here."""

    def __init__(
        self, config: Config, world: World, stop: StopSignals, name: str, teacher: TeacherCache | None = None
    ) -> None:
        start = time.perf_counter()
        source = open_source(config.data)
        shard = shard_of(source.num_classes, world.rank, world.size)
        dim = config.student.model.embedding_dim
        store = CentreStore.random(shard, source.num_classes, dim, torch.float32, world.device, seed=0)
        folder = Path(config.run.folder) / name
        local = config.student.global_batch // world.size
        taught_by = teacher or open_teacher(config.teacher, config.data.image_size, world.device, local)
        context = RunContext(config, world, source, folder, stop)
        self.trainer = Trainer("student", config.student, context, store, taught_by)
        self.clock = Clock(world.device)
        self.batches = self._batches()
        self._put_clocks()
        self.run(1)  # warms up
        self.opening = time.perf_counter() - start  # seconds, with the first step
        self.step_seconds: list[float] = []  # of each run

    def _put_clocks(self) -> None:
        trainer, around = self.trainer, self.clock.around
        for part, owner, names in (
            ("teacher", trainer.teacher, ("embed",)),
            ("student", trainer.student, ("embed", "backward", "step")),
            ("centres", trainer.method, ("loss",)),
            ("centres", trainer.centres, ("step",)),
        ):
            for name in names if owner is not None else ():
                setattr(owner, name, around(part, getattr(owner, name)))
        self.next = around("loader", lambda: next(self.batches))

    def _batches(self) -> Iterator[FaceBatch]:
        epoch = 0
        while True:
            yield from self.trainer.loader.epoch(epoch)
            epoch += 1

    def run(self, steps: int) -> float:
        """Without clocks within -> seconds of a step."""
        wait_for(self.clock.device)
        start = time.perf_counter()
        for _ in range(steps):
            self.trainer.micro_step(self.next())
        wait_for(self.clock.device)
        return (time.perf_counter() - start) / steps

    def run_clocked(self, steps: int) -> None:
        self.clock.on = True
        for _ in range(steps):
            self.clock.step = defaultdict(float)
            self.clock.around("step", lambda: self.trainer.micro_step(self.next()))()
            self.clock.steps.append(dict(self.clock.step))
        self.clock.on = False


def measure(args: argparse.Namespace, folder: Path, world: World) -> dict[str, Any]:
    config = configured(args, folder)
    make_inputs(args, config, folder)
    start = time.perf_counter()
    with redirect_stdout(sys.stderr):
        embed(config, world, folder / "cache", False, None)
    made = (time.perf_counter() - start) / args.records
    cache = TeacherCache(folder / "cache")
    stop = StopSignals()
    try:
        ways = {"live": Way(config, world, stop, "live"), "cached": Way(config, world, stop, "cached", cache)}
        if args.compile:
            ways["compiled"] = Way(compiled(config), world, stop, "compiled")
        for _ in range(args.runs):
            for way in ways.values():
                way.step_seconds.append(way.run(args.steps))
                way.run_clocked(args.steps)
        parts = {name: way.clock.medians() for name, way in ways.items()}
        seconds = {name: statistics.median(way.step_seconds) for name, way in ways.items()}
        opening = {name: way.opening for name, way in ways.items()}
        for way in ways.values():
            way.batches.close()  # type: ignore[attr-defined]
            way.trainer.close()
    finally:
        stop.forget()
    result = result_of(args, seconds, made, cache, world) | compared(seconds, parts, opening)
    return result | {"seconds": parts}


def result_of(
    args: argparse.Namespace, seconds: dict[str, float], made: float, cache: TeacherCache, world: World
) -> dict[str, Any]:
    """seconds: of a whole step, by way."""
    keys = ["teacher", "student", "width", "dim", "size", "batch", "classes"]
    keys += ["records", "loader", "workers", "precision"]
    saved = (seconds["live"] - seconds["cached"]) / args.batch
    return {
        **{key: getattr(args, key) for key in keys},
        "images_per_second": {name: args.batch / step for name, step in seconds.items()},
        "speedup": seconds["live"] / seconds["cached"],
        "step_seconds": seconds,
        "cache_seconds_per_record": made,
        "cache_bytes_per_record": cache.facts.record_bytes,
        "cache_pays_after_epochs": made / saved if saved > 0 else None,
        "steps": args.steps,
        "runs": args.runs,
        **machine(world.device),
    }


def compared(
    seconds: dict[str, float], parts: dict[str, dict[str, float]], opening: dict[str, float]
) -> dict[str, Any]:
    """What compiling gained and took, if that was asked for."""
    if "compiled" not in seconds:
        return {}
    gained = {part: parts["live"][part] / parts["compiled"][part] for part in ("teacher", "student")}
    gained["step"] = seconds["live"] / seconds["compiled"]
    return {"compiled_speedup": gained, "compile_seconds": opening["compiled"] - opening["live"]}


def table_of(result: dict[str, Any]) -> PrettyTable:
    table = PrettyTable(["teacher", "images/s", "step, ms", *(f"{part}, ms" for part in PARTS), "other, ms"])
    for name, parts in result["seconds"].items():
        other = parts["step"] - sum(parts[part] for part in PARTS)
        shown = (result["step_seconds"][name], *(parts[part] for part in PARTS), other)
        times = [f"{1e3 * value:.1f}" for value in shown]
        table.add_row([name, f"{result['images_per_second'][name]:.1f}", *times])
    return table


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder, World.start() as world:
        result = measure(args, Path(folder), world)
    print(json.dumps(result) if args.json else table_of(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
