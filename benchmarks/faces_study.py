"""A study on real photographs with a real teacher: every method and ablation, on persons that nobody was trained on.

    python benchmarks/faces_study.py prepare --faces FOLDER [--pieces N]   split, files, the teacher's embeddings
    python benchmarks/faces_study.py run --next 4                          the next runs that have no result yet
    python benchmarks/faces_study.py list                                  runs and what is there of them
    python benchmarks/faces_study.py compare                               paired differences with their intervals
    python benchmarks/faces_study.py page                                  the tables of docs/study.md, in place

What is trained on and evaluated: faces_data.py; the runs: faces_runs.py; the comparisons and tables: faces_tables.py.
FOLDER: LFW and PubFig, aligned, and the SFace network (docs/running.md). One rank, one thread of torch's.

Resumable run by run: a result is a file in --results, written when its run ends, and no run is made twice. Cosines of
the evaluated pairs stay in --work, outside the repository; `compare` reads them. `prepare` goes on where it was: the
teacher embeds --pieces pieces at a time, and methods without a teacher can run before it is through.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from faces_data import StudyData, identities_of, train_folder
from faces_runs import CASES, ROOT, SEEDS, Case, config_of, file_name, planned, settings_of, tree_of
from faces_tables import PAGE, Findings, compare, with_tables
from measure import machine

from partialkd.context import METRICS
from partialkd.evaluate.verification import pairs_of_sets
from partialkd.run.begin import prepare_job
from partialkd.run.job import make_teacher, run_phase
from partialkd.storage.atomic_files import remove_folder, replacing, write_bytes, write_json
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

RESULTS, WORK = ROOT / "benchmarks" / "results" / "faces_study", Path("runs/faces_study")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "run", "list", "compare", "page"))
    parser.add_argument("--faces", type=Path, metavar="FOLDER", help="prepare: the photographs and the teacher")
    parser.add_argument(
        "--pieces", type=int, metavar="N", help="prepare: pieces that the teacher embeds (default: all)"
    )
    parser.add_argument("--next", type=int, default=1, metavar="N", help="run: how many runs (default: 1)")
    parser.add_argument("--case", choices=sorted(CASES), metavar="NAME", help="run: of this case alone")
    parser.add_argument("--work", type=Path, default=WORK, help="split, files, cosines (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="a file for each run")
    args = parser.parse_args()
    if args.what == "prepare" and args.faces is None:
        parser.error("prepare needs --faces FOLDER")
    return args


def missing(args: argparse.Namespace) -> list[tuple[Case, int]]:
    """Runs that have no result with their settings, in their order; those whose teacher is not there yet left out."""
    todo = []
    for case, seed in planned():
        path = args.results / f"{file_name(case, seed)}.json"
        done = path.exists() and json.loads(path.read_text(encoding="utf-8"))["settings"] == settings_of(case)
        if not done and args.case in (None, case.name):
            todo.append((case, seed))
    return todo


def can_run(case: Case, work: Path) -> bool:
    """Whether the teacher's embeddings are there, if the case needs them."""
    return "teacher" not in tree_of(case) or (train_folder(work, case.data, case.size) / f"{case.teacher}.npz").exists()


def run(args: argparse.Namespace, case: Case, seed: int, world: World) -> None:
    """Train and score one student, and write its result."""
    about = json.loads((args.work / "split.json").read_text(encoding="utf-8"))
    chosen = identities_of(about["split"], case.data)
    records = sum(len(about["images"][name]) for name in chosen)
    config = config_of(case, seed, args.work, records)
    began, processor = time.perf_counter(), time.process_time()
    with StopSignals() as stop:
        job = prepare_job(config, world, "never", stop)
        network = run_phase(job, "student", config.student, make_teacher(job))
    found = pairs_of_sets(network, config.evaluation, config.data.image_size, False, world)
    last = json.loads((job.context.folder / METRICS).read_text(encoding="utf-8").splitlines()[-1])
    kept = args.work / "cosines" / f"{file_name(case, seed)}.npz"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with replacing(kept) as (file,):
        np.savez(file, allow_pickle=False, **{name: pairs.cosines.astype(np.float32) for name, pairs in found.items()})
    row: dict[str, Any] = {
        "case": case.name,
        "method": case.method,
        "identities": len(chosen),
        "images": records,
        "changes": case.changes,
        "seed": seed,
        "settings": settings_of(case),
        "steps": last["step"],
        "logged": {key: value for key, value in last.items() if isinstance(value, float)},  # at the last step
        "scores": {name: asdict(pairs.scores(config.evaluate)) for name, pairs in found.items()},
        "seconds": round(time.perf_counter() - began, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "load": os.getloadavg()[0],
        **machine(world.device),
    }
    args.results.mkdir(parents=True, exist_ok=True)
    write_json(args.results / f"{file_name(case, seed)}.json", row)
    remove_folder(job.context.folder)
    gc.collect()  # DeepSpeed's engines hold on to themselves


def run_next(args: argparse.Namespace) -> None:
    todo = [one for one in missing(args) if can_run(one[0], args.work)][: args.next]
    with World.start() as world, redirect_stdout(sys.stderr):
        for case, seed in todo:
            run(args, case, seed, world)
    print(f"{len(todo)} runs made, {len(missing(args))} of {len(planned())} missing")
    if not todo:
        sys.exit(3)


def main() -> None:
    args = parse_args()
    if args.what == "prepare":
        data = StudyData(args.faces, args.work)
        data.prepare()
        left = data.embed(args.pieces)
        print("complete" if not left else f"{left} pieces of the teacher's embeddings are missing")
    elif args.what == "run":
        run_next(args)
    elif args.what == "list":
        gone = {file_name(*one) for one in missing(args)}
        for case, seed in planned():
            print(f"{'missing' if file_name(case, seed) in gone else 'there'}\t{seed} of {SEEDS}\t{case.name}")
    elif args.what == "compare":
        compare(args.results, args.work)
    else:
        page = with_tables(PAGE.read_text(encoding="utf-8"), Findings.read(args.results))
        write_bytes(PAGE, page.encode())


if __name__ == "__main__":
    main()
