"""Faults until the job is done, at random moments: kill -9 of ranks and of the launcher, SIGSTOP of ranks, SIGHUP to
all, and a standard output that nobody reads any more, which must not end the job.

    python benchmarks/chaos.py [--faults 100] [--kinds KIND ...] [--pairs 10] [--damages 60] [--minutes 60] [--seed 0]
                               [--ranks 2] [--folder FOLDER] [--out FILE]

Short: --faults 5 --pairs 2 --damages 6.

The job is the chain of configs/quickstart.toml (teacher, student, the student alone, evaluation, export), made shorter
by `OVERRIDES`, in deterministic mode, run by launch/local.sh with --resume auto and MAX_RESTARTS = 2. It runs once
undisturbed. Then it is started again and again as a user would, by the same command: every start goes on to the next
fault, which comes a random time after the start or after progress was seen (a new checkpoint, a new line of metrics, a
finished phase), so that faults also hit start-up, saving, evaluation, the pass for class means and the changes between
phases. When the job has been finished it is begun anew in another folder, until `--faults` faults have been made; the
last round runs to its end. Every finished round must have, bit for bit, the files of the undisturbed run: the student
of every phase, the centres, the exported student, the scores, the loss of every logged step.

Then --pairs times two jobs are started at once, and --damages times a file of a half-finished run is damaged before the
run is gone on with (chaos_files.py).

Written to --out: counts by kind and by what the job was doing, rounds, starts by hand, seconds from a fault to new
progress, hardware, versions, commit. Exit status 1 if a file differs, a job does not finish, or the time was up before
all faults were made.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from chaos_files import damage_files, start_pairs
from chaos_job import KINDS, OVERRIDES, Job, make_fault, results
from measure import machine

from partialkd.storage.atomic_files import write_json

STUCK_S = 300.0  # without progress: the soak has failed


@dataclass
class Counts:
    """What happened."""

    kinds: Counter[str] = field(default_factory=Counter)
    doing: Counter[str] = field(default_factory=Counter)
    starts: int = 0  # of the command
    rounds: int = 0
    recovery_s: list[float] = field(default_factory=list)


class Soak:
    """Rounds of the job, with a fault whenever it has come a little further."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.rng, self.counts = args, random.Random(args.seed), Counts()
        self.deadline = time.monotonic() + 60 * args.minutes
        self.deck: list[str] = []  # kinds of faults to come, in a random order
        self.job = self.next_job()
        self.last = ""  # kind of fault
        self.hit_at: float | None = None  # the time of a fault that there was no progress after

    def next_job(self) -> Job:
        job = Job(self.args.folder / f"round{self.counts.rounds}", self.args.ranks, self.args.timeout)
        self.start(job)
        return job

    def start(self, job: Job) -> None:
        self.counts.starts += 1
        job.start()

    def run(self, check: Callable[[Job], None]) -> None:
        """Until all faults are made, or the time is up; then the last round to its end."""
        patience = 0  # faults in a row that did not wait for progress
        while self.counts.kinds.total() < self.args.faults and time.monotonic() < self.deadline:
            early = patience < 2 and self.rng.random() < 0.3
            patience = patience + 1 if early else 0
            if self.wait(self.rng.uniform(0, 15), for_progress=not early):
                check(self.job)
                self.job = self.next_job()
                continue
            counts = [KINDS[kind] for kind in self.args.kinds]
            self.deck = self.deck or self.rng.sample(self.args.kinds, sum(counts), counts=counts)
            kind = self.deck.pop()
            doing = self.job.doing()
            if make_fault(self.job, kind, self.rng):
                self.last = kind
                self.counts.kinds[kind] += 1
                self.counts.doing[doing] += 1
                self.hit_at = self.hit_at or time.monotonic()
                say(f"{self.counts.kinds.total()}: {kind} ({doing})")
        while not self.wait(STUCK_S, for_progress=True):
            say("on to the end")
        check(self.job)

    def wait(self, pause_s: float, for_progress: bool) -> bool:
        """Wait for progress, then a part of `pause_s`, starting the job where it ended -> whether it has finished."""
        before, began, seen = self.job.progress(), time.monotonic(), None if for_progress else time.monotonic()
        while seen is None or time.monotonic() - seen < (pause_s / 5 if for_progress else pause_s):
            if self.job.finished():
                self.counts.rounds += 1
                self.recovered()
                return True
            assert self.job.launcher is not None
            if self.job.launcher.poll() is not None:
                if self.last == "lost stdout":
                    raise SystemExit(f"a standard output that nobody reads ended the job: {self.job.log}")
                self.start(self.job)
            if self.job.progress() != before:
                self.recovered()
                seen = seen or time.monotonic()
            if time.monotonic() - began > STUCK_S + pause_s:
                raise SystemExit(f"no progress in {STUCK_S} s: {self.job.log}")
            time.sleep(0.05)
        return False

    def recovered(self) -> None:
        if self.hit_at is not None:
            self.counts.recovery_s.append(time.monotonic() - self.hit_at)
            self.hit_at = None


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="of faults (default: all)")
    parser.add_argument("--pairs", type=int, default=10, help="times that two jobs are started at once")
    parser.add_argument("--damages", type=int, default=60, help="files that are damaged, one a start")
    parser.add_argument("--minutes", type=float, default=60.0, help="no more faults after this long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=30.0, help="of a collective, in seconds; ends a stopped rank")
    parser.add_argument("--folder", type=Path, help="for the runs; default: a temporary one, removed if all is well")
    parser.add_argument("--out", type=Path, help="write the result here")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    temporary = args.folder is None
    args.folder = (args.folder or Path(tempfile.mkdtemp(prefix="chaos"))).absolute()
    start = time.monotonic()
    calm = Job(args.folder / "undisturbed", args.ranks, args.timeout)
    calm.start()
    assert calm.launcher is not None
    if calm.launcher.wait():
        raise SystemExit(f"the undisturbed run failed: {calm.log}")
    calm_s, expected = time.monotonic() - start, dict(results(calm))
    say(f"undisturbed: {calm_s:.0f} s, {len(expected)} results")
    differences: list[str] = []

    def check(job: Job) -> None:
        got = dict(results(job))
        differences.extend(f"{job.run}: {name}" for name in expected if got.get(name) != expected[name])
        differences.extend(f"{job.run}: {name}" for name in got.keys() - expected.keys())
        say(f"round finished: {'different: ' + ', '.join(differences) if differences else 'bit for bit the same'}")

    counts = Counts()
    if args.faults:
        soak = Soak(args)
        counts = soak.counts
        try:
            soak.run(check)
        finally:
            if soak.job.launcher is not None:
                soak.job.launcher.kill()  # its ranks go with it
    rng = random.Random(args.seed)
    pairs = start_pairs(args.folder / "pairs", args.pairs, args, expected, calm_s, rng)
    damages = damage_files(calm, args.damages, expected, rng)
    differences += [f"{what}: {said}" for outcome in (pairs, damages) for what, said in outcome.wrong]
    seconds = time.monotonic() - start
    facts = {"seconds": seconds, "undisturbed_seconds": calm_s, "results_a_round": len(expected)}
    report(args, counts, differences, **facts, pairs=pairs.counts, damages=damages.counts)
    if temporary and not differences:
        shutil.rmtree(args.folder)
    return status(counts.kinds.total(), args.faults, differences)


def status(made: int, wanted: int, differences: list[str]) -> int:
    """Exit status, having said what is not as it should be."""
    if made < wanted:
        say(f"the time was up (--minutes) after {made} of {wanted} faults")
    if differences:
        say(f"not as undisturbed: {', '.join(differences)}")
    return int(made < wanted or bool(differences))


def report(args: argparse.Namespace, counts: Counts, differences: list[str], **facts: Any) -> None:
    times = counts.recovery_s or [0.0]
    value = {
        "faults": counts.kinds.total(),
        "by_kind": dict(counts.kinds),
        "by_moment": dict(counts.doing),
        "rounds": counts.rounds,
        "starts_by_hand": counts.starts,
        "equal": not differences,
        "differences": differences,
        **facts,
        "recovery_mean_s": statistics.mean(times),
        "recovery_median_s": statistics.median(times),
        "recovery_max_s": max(times),
        **{key: getattr(args, key) for key in ("ranks", "seed", "timeout")},
        "overrides": OVERRIDES,
        **machine(torch.device("cpu")),
    }
    print(json.dumps(value, indent=2))
    if args.out:
        write_json(args.out, value)


if __name__ == "__main__":
    raise SystemExit(main())
