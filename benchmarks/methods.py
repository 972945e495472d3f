"""Every method of configs/methods/ over several seeds, on the same drawn faces, with the same teacher, in equal steps.

    python benchmarks/methods.py [--methods NAME ...] [--seeds 5] [--work FOLDER] [--out FILE] [KEY=VALUE ...]
    python benchmarks/methods.py --list      one name per line, of every method that can be configured
    python benchmarks/methods.py --table     the results so far; trains nothing. --markdown: as docs/methods.md has them

One rank. The teacher of the files, the same one in all of them, is trained once and its embeddings are kept; a method
that looks into the teacher's layers runs its network instead. Each run is the student of one file: its method, terms,
order of records and optimiser, through the trainer that trains everywhere. A seed sets the order of the records, the
student's start and random centres.

It takes hours and goes on where it was: a row that `--out` has, of the same method, seed and settings, is not made
again; after each run the file is written anew. Started anew with more methods or seeds, it makes what is missing, seeds
outside, methods within, so that what is there can be compared at any time. To go on in the background:

    OMP_NUM_THREADS=1 nice -n 19 python benchmarks/methods.py &

rows: {"method", "seed", "steps", "accuracy", "auc", "tar_at_far", "seconds", ...}: of the first verification set, whose
identities nobody trained on; seconds of training and scoring, and `processor_seconds` of all threads; the commit and
a digest of the settings that made the row; `error` in place of scores where the method could not run.
--table: means over the seeds, and the mean of the paired differences to "alone" of the same seeds, with its 95 %
interval by Student's t. They are of one teacher, and say nothing of others, of other data or of longer training.
KEY=VALUE: overrides of every file, as launch/train.py takes them.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import statistics
import sys
import time
import traceback
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import Any

from measure import difference, machine
from prettytable import PrettyTable

from partialkd.commands.embed import embed
from partialkd.config import Config
from partialkd.config.load import load_config, parse_config
from partialkd.context import METRICS
from partialkd.errors import PartialKDError
from partialkd.models.saved import MODEL
from partialkd.run.begin import Job, prepare_job
from partialkd.run.job import evaluate, make_teacher, run_phase
from partialkd.storage.atomic_files import remove_folder, write_json
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

ROOT = Path(__file__).parents[1]
METHODS, OUT = ROOT / "configs" / "methods", ROOT / "benchmarks" / "results" / "methods_cpu.json"
ALONE = "alone"
# IJB-C, TAR % at FAR 1e-4, MobileFaceNet, teacher ResNet-50, MS1MV2: the table of AdaDistill, arXiv:2407.01332.
PUBLISHED = {
    "adadistill": 93.27, "adadistill_cos": 93.05, "adadistill_alpha": 92.56, "arcdistill": 91.70, "vanilla_l2": 91.29,
    "ekd": 90.48, "rkd": 89.65, "darkrank": 89.28, "alone": 89.13, "sp": 88.43, "kd": 88.37, "cckd": 87.99,
    "shrinkteanet": 87.80, "fitnets": 87.76, "margin_kd": 85.71, "triplet_l2": 84.57,
}  # fmt: skip
MORE_SEEDS = range(2, 11)

Tree = dict[str, Any]


def names() -> list[str]:
    """Every method that can be configured: "alone" first, what all others are compared with."""
    found = sorted(path.stem for path in METHODS.glob("*.toml"))
    return sorted(found, key=lambda name: name != ALONE)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the names of the methods")
    parser.add_argument("--table", action="store_true", help="print what --out holds")
    parser.add_argument("--markdown", action="store_true", help="print it as docs/methods.md has it")
    parser.add_argument("--methods", nargs="+", choices=names(), metavar="NAME", help="(default: all)")
    parser.add_argument("--seeds", type=int, default=5, choices=MORE_SEEDS, metavar="2..10")
    parser.add_argument("--work", type=Path, default=Path("runs/methods_table"), help="the teacher and its embeddings")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    return parser.parse_args()


# --------------------------------------------------------------------------------------------------- runs


class Bench:
    """The files, the teacher that they have in common, and what has been measured."""

    def __init__(self, args: argparse.Namespace, world: World) -> None:
        self.world, self.work, self.out = world, args.work, args.out
        configs = {name: config_of(name, args.overrides) for name in names()}
        # Without defaults, so that a key that is new changes no digest.
        self.trees = {name: one.model_dump(mode="json", exclude_defaults=True) for name, one in configs.items()}
        self.tapped = {name for name, one in configs.items() if any(term.taps for term in one.student.terms)}
        before = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        self.rows: list[Tree] = before.get("rows", [])
        self.facts = {**machine(world.device), "teacher": before.get("teacher")}

    def missing(self, name: str, seed: int) -> bool:
        """Whether there is no row of this run with these settings."""
        same = {"method": name, "seed": seed, "settings": self.settings(name)}
        return not any(same.items() <= row.items() for row in self.rows)

    def settings(self, name: str) -> str:
        """A digest of what makes the numbers of a method."""
        tree = {key: self.trees[name].get(key) for key in ("teacher", "student", "evaluate")}
        tree["data"] = {key: value for key, value in self.trees[name]["data"].items() if key not in ("path", "workers")}
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]

    def run(self, name: str, seed: int) -> None:
        """Train and score one student, and write its row."""
        row = {"method": name, "seed": seed, "settings": self.settings(name), "commit": self.facts["commit"]}
        config = self.config(name, seed)
        began, processor = time.perf_counter(), time.process_time()
        try:
            row |= self.scored(config)
        except PartialKDError as error:
            traceback.print_exc()
            row["error"] = str(error)
        row["seconds"] = round(time.perf_counter() - began, 2)
        row["processor_seconds"] = round(time.process_time() - processor, 2)
        self.rows = [one for one in self.rows if (one["method"], one["seed"]) != (name, seed)] + [row]
        if (self.work / "student").exists():
            remove_folder(self.work / "student")
        self.write()

    def config(self, name: str, seed: int) -> Config:
        """A run of its own, of one phase, taught by what all have in common."""
        tree = self.trees[name]
        run = {**tree["run"], "name": "student", "folder": str(self.work), "seed": seed}
        teacher = {**self.teacher} if "teacher" in tree else {}
        if name in self.tapped:
            del teacher["cache"]  # kept embeddings have no layers
        return parse_config({**tree, "run": run, "teacher": teacher})

    def scored(self, config: Config) -> Tree:
        with StopSignals() as stop:
            job = prepare_job(config, self.world, "never", stop)
            evaluate(job, "student", run_phase(job, "student", config.student, make_teacher(job)))
        gc.collect()  # DeepSpeed's engines hold on to themselves
        return {"steps": last_step(job.context.folder), **first_scores(job, "student")}

    @cached_property
    def teacher(self) -> Tree:
        """The teacher of the files, trained and kept where that has not been done."""
        tree = next(tree for tree in self.trees.values() if "teacher" in tree)
        run = {**tree["run"], "name": "taught", "folder": str(self.work)}
        config = parse_config({**tree, "run": run})
        assert config.teacher.train is not None
        with StopSignals() as stop:
            job = prepare_job(config, self.world, "auto" if (self.work / "taught").exists() else "never", stop)
            evaluate(job, "teacher", run_phase(job, "teacher", config.teacher.train, None))
        self.facts["teacher"] = first_scores(job, "teacher")
        path, size = self.work / "taught" / "teacher" / MODEL, {"size": config.data.image_size}
        model = tree["teacher"]["train"]["model"]
        teacher = {"source": "checkpoint", "path": str(path), "model": model, "input": size, "accept": True}
        kept = self.work / "kept"
        embed(parse_config({**tree, "run": run, "teacher": teacher}), self.world, kept, kept.exists(), None)
        return {**teacher, "centres": "means", "cache": str(kept)}

    def write(self) -> None:
        order = {name: at for at, name in enumerate(names())}
        rows = sorted(self.rows, key=lambda row: (order.get(row["method"], len(order)), row["method"], row["seed"]))
        write_json(self.out, {"load": os.getloadavg()[0], **self.facts, "rows": rows})


def config_of(name: str, overrides: list[str]) -> Config:
    """A file with the overrides; those of the teacher only where it has one."""
    path = METHODS / f"{name}.toml"
    taught = load_config(path).teacher.source != "none"
    return load_config(path, [one for one in overrides if taught or not one.startswith("teacher.")])


def first_scores(job: Job, who: str) -> Tree:
    found = next(iter(job.scores.values()))[who]
    return {"accuracy": found.accuracy, "auc": found.auc, "tar_at_far": found.tar_at_far}


def last_step(folder: Path) -> int:
    """Optimiser steps that a run's metrics say."""
    return json.loads((folder / METRICS).read_text(encoding="utf-8").splitlines()[-1])["step"]


def measure(args: argparse.Namespace, world: World) -> None:
    bench = Bench(args, world)
    todo = [(name, seed) for seed in range(args.seeds) for name in args.methods or names()]
    todo = [run for run in todo if bench.missing(*run)]
    for at, (name, seed) in enumerate(todo, 1):
        bench.run(name, seed)
        print(f"{at} of {len(todo)}: {bench.rows[-1]}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ results


def compared(rows: list[Tree]) -> dict[str, Tree]:
    """By method: means over its seeds, and the difference to "alone" of the same seeds, of every score."""
    by_method: dict[str, dict[int, dict[str, float]]] = {}
    for row in rows:
        if "error" not in row:
            by_method.setdefault(row["method"], {})[row["seed"]] = scores_of(row)
    alone = by_method.get(ALONE, {})
    return {name: _compared(found, alone) for name, found in by_method.items()}


def _compared(found: dict[int, dict[str, float]], alone: dict[int, dict[str, float]]) -> Tree:
    common = sorted(found.keys() & alone.keys())
    return {
        "seeds": len(found),
        **{
            score: {
                "mean": statistics.mean(one[score] for one in found.values()),
                "difference": difference(*([one[seed][score] for seed in common] for one in (found, alone)))
                if common
                else None,
            }
            for score in next(iter(found.values()))
        },
    }


def scores_of(row: Tree) -> dict[str, float]:
    tars = {f"TAR at FAR {far}": value for far, value in row["tar_at_far"].items()}
    return {"accuracy": row["accuracy"], "AUC": row["auc"], **tars}


def table_of(rows: list[Tree]) -> PrettyTable:
    """Per cent; beside each mean the difference to "alone" with half the width of its 95 % interval."""
    results = compared(rows)
    scores = [key for key in next(iter(results.values()), {}) if key != "seeds"]
    table = PrettyTable(
        ["method", "seeds", *(cell for score in scores for cell in (f"{score} %", f"{score}: - alone"))]
    )
    table.align["method"] = "l"
    for name, found in sorted(results.items(), key=lambda item: -item[1]["AUC"]["mean"]):
        cells = []
        for score in scores:
            cells += [f"{100 * found[score]['mean']:.1f}", "" if name == ALONE else shown(found[score]["difference"])]
        table.add_row([name, found["seeds"], *cells])
    return table


def markdown_of(rows: list[Tree]) -> list[str]:
    """Lines of the table in docs/methods.md: AUC and rate at the first FAR, best first, beside the published order."""
    results = compared(rows)
    order = sorted(PUBLISHED, key=lambda name: -PUBLISHED[name])
    lines = [
        "| | seeds | AUC % | - alone | TAR % at FAR 0.1 | - alone | published, IJB-C |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in sorted(results.items(), key=lambda item: -item[1]["AUC"]["mean"]):
        cells = [f"`{name}`", str(found["seeds"])]
        for score in ("AUC", "TAR at FAR 0.1"):
            gap = "" if name == ALONE else shown(found[score]["difference"])
            cells += [f"{100 * found[score]['mean']:.1f}", gap]
        cells.append(f"{PUBLISHED[name]:.2f}, {order.index(name) + 1}" if name in PUBLISHED else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def shown(gap: Tree | None) -> str:
    if gap is None:
        return ""
    half = "" if gap["half_width"] is None else f" ± {100 * gap['half_width']:.1f}"
    return f"{100 * gap['mean']:+.1f}{half}"


def main() -> None:
    args = parse_args()
    if args.list:
        print("\n".join(names()))
        return
    if not (args.table or args.markdown):
        with World.start() as world, redirect_stdout(sys.stderr):
            measure(args, world)
    rows = json.loads(args.out.read_text(encoding="utf-8"))["rows"]
    print("\n".join(markdown_of(rows)) if args.markdown else table_of(rows))


if __name__ == "__main__":
    main()
