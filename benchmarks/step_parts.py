"""What it costs to measure where a step's time goes: steps of a real phase with the clock on and off, in pairs.

    python benchmarks/step_parts.py [--pairs 40] [--json] [--out FILE]

A student of the default job, trained alone on drawn faces (made in a temporary folder), one rank. Every pair is a step
with the clock and one without, which goes first in turn. Two figures, for the cost is small against the noise of steps:

- ratio: processor time with over without, the geometric mean of the pairs, with Student's interval of 95 %;
- direct: marks of a step times the time of a mark (the mean of many), over the median step.

apart: how far the parts of a step are from the step, both by the wall clock: the largest of all steps, as a share.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import STUDENT_T, machine

from partialkd.config.load import load_config
from partialkd.run.begin import prepare_job
from partialkd.run.first_centres import make_store
from partialkd.training.start import Start
from partialkd.training.trainer import Trainer
from partialkd.world.part_clock import PartClock
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.toml"
MARKS = 20_000  # whose mean is the time of one


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=120)
    parser.add_argument("--identities", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    return parser.parse_args()


def make_trainer(args: argparse.Namespace, folder: Path, world: World, stop: StopSignals) -> Trainer:
    """The phase "alone" of the default job."""
    overrides = [
        f"run.folder={folder}", f"data.path={folder / 'data'}", f"data.prepare.identities={args.identities}",
        "data.prepare.held_out_identities=4", "data.prepare.pairs=20", "run.tensorboard=false", "data.loader=jpeg",
        f"alone.global_batch={args.batch}", "alone.epochs=1000",
        "teacher.train.epochs=1000", "student.epochs=1000", "evaluate.folds=2", "evaluate.fars=[0.5]",
    ]  # fmt: skip
    config = load_config(CONFIG, overrides)
    job = prepare_job(config, world, "never", stop)
    assert config.alone is not None
    store = make_store(job.context, config.alone, None, False, Start())
    return Trainer("alone", config.alone, job.context, store, None)


def measure(trainer: Trainer, pairs: int) -> dict[str, Any]:
    """Alternate steps with the clock and without."""
    clock, device, batches = trainer.world.clock, trainer.world.device, iter(trainer.loader)
    processor: dict[bool, list[float]] = {True: [], False: []}
    apart, marks = [], 0

    def step() -> None:
        with clock.within("data"):
            batch = next(batches)
        trainer.micro_step(batch)

    for _ in range(3):
        step()
    for pair in range(pairs):
        for on in (pair % 2 == 0, pair % 2 == 1):
            clock.start(device, "other") if on else clock.stop()
            began, wall = time.process_time(), time.perf_counter()
            step()
            marks = len(clock._marks) if on else marks
            parts = sum(clock.read().values())
            processor[on].append(time.process_time() - began)
            if on:
                apart.append(abs(parts / (time.perf_counter() - wall) - 1))
    clock.stop()
    logs = [math.log(on / off) for on, off in zip(processor[True], processor[False], strict=True)]
    quantile = STUDENT_T[len(logs) - 2] if len(logs) - 2 < len(STUDENT_T) else 2.0
    half = quantile * statistics.stdev(logs) / len(logs) ** 0.5
    mean, step_seconds = statistics.mean(logs), statistics.median(processor[False])
    mark = mark_seconds(trainer.world)
    return {
        "pairs": pairs,
        "step_seconds": step_seconds,
        "ratio": math.exp(mean),
        "ratio_interval": [math.exp(mean - half), math.exp(mean + half)],
        "marks": marks,
        "mark_seconds": mark,
        "direct": marks * mark / step_seconds,
        "apart": max(apart),
    }


def mark_seconds(world: World) -> float:
    """Processor time of a mark, summing up included."""
    clock = PartClock()
    clock.start(world.device, "other")
    began = time.process_time()
    for _ in range(MARKS // 2):
        with clock.within("part"):
            pass
    clock.read()
    return (time.process_time() - began) / MARKS


def main() -> None:
    args = parse_args()
    with World.start() as world, StopSignals() as stop, tempfile.TemporaryDirectory() as made:
        trainer = make_trainer(args, Path(made), world, stop)
        result = {"batch": args.batch, **measure(trainer, args.pairs), **machine(world.device)}
        trainer.close()
    if args.json:
        print(json.dumps(result))
    else:
        low, high = result["ratio_interval"]
        ratio = f"{result['ratio']:.4f} [{low:.4f}, {high:.4f}]"
        print(f"a step of {result['step_seconds']:.3f} s: with the clock {ratio} of it")
        print(f"{result['marks']} marks of {1e6 * result['mark_seconds']:.2f} us: {result['direct']:.4%}")
        print(f"the parts differ from the step by at most {result['apart']:.3%}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
