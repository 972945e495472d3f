"""What low-precision stores and sampled rows cost in accuracy, on the default job cut short.

    torchrun --nproc_per_node=2 benchmarks/stores.py [--config FILE] [--steps 60] [--teacher-steps 150] [--seeds 3]
                                                     [--method NAME] [--json] [--out FILE] [KEY=VALUE ...]

The job's teacher is trained once and its embeddings are kept. From them, students of `steps` steps: ArcDistill (fixed
centres) and the job's own method (moving averages) with each store; and the job's `alone` (trained centres) with rows
and moments in float32 and bfloat16, with AdamW and one second moment a row. The last two also compared with samples of
the other classes. Schedules are shortened with the steps: the warm-up is a sixth of them.
A seed sets the order of the records, the student's start and random centres. `difference` is to the method's first
trial, exact in float32, of the same seed: mean over the seeds, and half the width of its 95 % interval by Student's t.
It says nothing of other teachers, data or lengths of training.
The control, ArcDistill in float32 with its sums in smaller chunks, differs from the first trial by the last bits of
rounding: how far two trials of one seed come apart when nothing that matters was changed.
loss: over the last quarter of the steps, of training; sampled and not corrected, it lacks the classes left out.
accuracy, auc: on the first verification set, of identities that nobody trained on.
KEY=VALUE: overrides of the configuration, as launch/train.py takes them. `--out` is written anew after every seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from measure import STUDENT_T, difference, machine, spread
from prettytable import PrettyTable
from torch import nn

from partialkd.commands.embed import embed
from partialkd.config import Config
from partialkd.config.load import load_config, parse_config
from partialkd.context import METRICS
from partialkd.data.packing.prepare import prepare
from partialkd.data.sources.open import open_source
from partialkd.models.saved import MODEL
from partialkd.run.begin import Job, prepare_job
from partialkd.run.job import evaluate, make_teacher, run_phase
from partialkd.storage.atomic_files import write_json
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

DEFAULT = Path(__file__).parents[1] / "configs" / "quickstart.toml"
SCORES = ("loss", "accuracy", "auc")

Tree = dict[str, Any]
ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.01}
STORES: dict[str, Tree] = {name: {"centres": {"store": name}} for name in ("fp32", "bf16", "int8")}
CONTROL: dict[str, Tree] = {"fp32, smaller chunks": {"centres": {"chunk_rows": 64}}}
SAMPLES: dict[str, Tree] = {
    f"rate {rate}{', corrected' * corrected}": {
        "centres": {"sample_rate": rate, "importance_correction": corrected},
    }
    for rate in (0.3, 0.1)
    for corrected in (False, True)
}  # fmt: skip
TRAINED: dict[str, Tree] = {
    "fp32": {},
    "bf16 rows": {"centres": {"store": "bf16"}},
    "bf16 moments": {"centres": {"moments": "bf16"}},
    "bf16 rows and moments": {"centres": {"store": "bf16", "moments": "bf16"}},
}
ADAPTED: dict[str, Tree] = {
    "fp32": {"optimizer": ADAMW},
    "one second moment a row": {"optimizer": ADAMW, "centres": {"second_moment": "row"}},
}


class Trial(NamedTuple):
    """A student and what it learns from."""

    method: str
    name: str
    teacher: Tree
    phase: Tree


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=DEFAULT)
    parser.add_argument("--steps", type=int, default=60, help="of each student")
    parser.add_argument("--teacher-steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, len(STUDENT_T) + 2), metavar="2..10")
    parser.add_argument("--method", metavar="NAME", help="the only one of the table's methods to measure")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------- trials


def shortened(phase: Tree, steps: int, images: int) -> Tree:
    """A phase that does `steps` steps, at whose end its learning rate has come down."""
    schedule = {**phase["schedule"], "warmup_steps": steps // 6}
    epochs = steps / (images // phase["global_batch"])
    return {**phase, "epochs": epochs, "max_steps": steps, "schedule": schedule}


def trials(student: Tree, alone: Tree, teacher: Tree) -> list[Trial]:
    """In the order of the table; the first of a method is what its others are compared with."""
    own = student["method"]
    fixed = {**student, "method": {"name": "arcdistill", "scale": own["scale"], "margin": own["margin"]}}
    nobody, adamw = {"source": "none"}, f"{alone['method']['name']}, adamw"
    return [
        *(Trial("arcdistill", name, teacher, {**fixed, **more}) for name, more in {**STORES, **CONTROL}.items()),
        *(Trial(own["name"], name, teacher, {**student, **more}) for name, more in {**STORES, **SAMPLES}.items()),
        *(
            Trial(alone["method"]["name"], name, nobody, {**alone, **more})
            for name, more in {**TRAINED, **SAMPLES}.items()
        ),
        *(Trial(adamw, name, nobody, {**alone, **more}) for name, more in ADAPTED.items()),
    ]


class Bench:
    """The configuration, and what all trials share."""

    def __init__(self, args: argparse.Namespace, world: World, folder: Path) -> None:
        self.world, self.folder, self.made = world, folder, 0
        base = load_config(args.config, args.overrides)
        self.base: Tree = {**base.model_dump(mode="json", exclude_none=True), "alone": None}
        world.on_main(lambda: prepare(base.data))
        images = world.together(lambda: len(open_source(base.data)))
        assert base.alone is not None
        assert base.teacher.train is not None
        phases = ((base.student, args.steps), (base.alone, args.steps), (base.teacher.train, args.teacher_steps))
        self.student, self.alone, self.train = (
            shortened(phase.model_dump(mode="json", exclude_none=True), steps, images) for phase, steps in phases
        )

    def config(self, seed: int, teacher: Tree, student: Tree) -> Config:
        """A run of its own, of one phase."""
        self.made += 1
        run = {"name": f"run{self.made}", "folder": str(self.folder), "seed": seed, "log_every": 1}
        run |= {"checkpoint_every": 0, "tensorboard": False}
        return parse_config({**self.base, "run": run, "teacher": teacher, "student": student})

    def teach(self) -> tuple[Tree, dict[str, float]]:
        """Collective. Train the teacher and keep its embeddings -> where they are, its scores."""
        source = {"source": "train", "centres": "means", "train": self.train}
        config = self.config(0, source, self.student)
        train = config.teacher.train
        assert train is not None
        scores = self.scored(config, lambda job: run_phase(job, "teacher", train, None))
        size = {"size": config.data.image_size}
        path = self.folder / config.run.name / "teacher" / MODEL
        teacher = {"source": "checkpoint", "path": str(path), "model": self.train["model"], "input": size}
        teacher["accept"] = True  # the same one for all, however good it is
        kept = self.folder / "kept"
        embed(self.config(0, teacher, self.student), self.world, kept, False, None)
        return {**teacher, "centres": "means", "cache": str(kept)}, scores

    def run(self, trial: Trial, seed: int) -> dict[str, float]:
        """Collective. Train and score one student."""
        config = self.config(seed, trial.teacher, trial.phase)
        return self.scored(config, lambda job: run_phase(job, "student", config.student, make_teacher(job)))

    def scored(self, config: Config, train: Callable[[Job], nn.Module]) -> dict[str, float]:
        """Collective. Loss of training, accuracy and area under the curve of what came out."""
        stop = StopSignals()
        try:
            job = prepare_job(config, self.world, "never", stop)
            evaluate(job, "network", train(job))
        finally:
            stop.forget()
        found = next(iter(job.scores.values()))["network"]
        return {
            "loss": self.world.on_main(lambda: last_loss(job.context.folder)),
            "accuracy": found.accuracy,
            "auc": found.auc,
        }


def last_loss(folder: Path) -> float:
    """Mean over the last quarter of a run's steps."""
    losses = [json.loads(line)["loss"] for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    return statistics.mean(losses[-max(1, len(losses) // 4) :])


# ------------------------------------------------------------------------------------------------ results


def summary(by_trial: dict[str, list[dict[str, float]]]) -> Tree:
    """Of one method, by trial: each seed's scores, their spread, the difference to the first trial."""
    columns = {name: {score: [one[score] for one in found] for score in SCORES} for name, found in by_trial.items()}
    exact = next(iter(columns.values()))
    return {
        name: {
            score: {"seeds": values, **spread(values), "difference": difference(values, exact[score])}
            for score, values in found.items()
        }
        for name, found in columns.items()
    }


def measure(args: argparse.Namespace, world: World, folder: Path) -> Tree:
    bench, facts = Bench(args, world, folder), machine(world.device)
    known = {trial.method for trial in trials(bench.student, bench.alone, {})}
    if args.method not in (None, *known):
        raise SystemExit(f"--method: must be one of {', '.join(sorted(known))}; got {args.method}")
    teacher, scores = bench.teach()
    wanted = [trial for trial in trials(bench.student, bench.alone, teacher) if args.method in (None, trial.method)]
    found: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for count in range(1, args.seeds + 1):
        for trial in wanted:
            found[trial.method][trial.name].append(bench.run(trial, count - 1))
        result = {
            "config": args.config.name,
            "overrides": args.overrides,
            "steps": args.steps,
            "teacher_steps": args.teacher_steps,
            "seeds": count,
            "world_size": world.size,
            "load": os.getloadavg()[0],
            "teacher": scores,
            "methods": {method: summary(by_trial) for method, by_trial in found.items()},
            **facts,
        }
        if args.out and world.is_main:
            write_json(args.out, result)
    return result


def table_of(result: Tree) -> PrettyTable:
    """Percent for accuracy; +-: the standard deviation, and of a difference the 95 % interval."""
    table = PrettyTable(["method", "centres", "loss", "accuracy, %", "difference", "auc, %", "difference "])
    for method, by_trial in result["methods"].items():
        for name, found in by_trial.items():
            loss = found["loss"]
            row = [method, name, f"{loss['mean']:.3f} ± {loss['std']:.3f}"]
            for score in ("accuracy", "auc"):
                one, gap = found[score], found[score]["difference"]
                row += [f"{100 * one['mean']:.1f} ± {100 * one['std']:.1f}"]
                row += [f"{100 * gap['mean']:+.1f} ± {100 * gap['half_width']:.1f}"]
            table.add_row(row)
    return table


def main() -> None:
    args = parse_args()
    with World.start() as world, tempfile.TemporaryDirectory() as made:
        with redirect_stdout(sys.stderr):
            result = measure(args, world, Path(world.broadcast_object(made)))
        world.barrier()
        if world.is_main:
            print(json.dumps(result) if args.json else table_of(result))


if __name__ == "__main__":
    main()
