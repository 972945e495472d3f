"""Two jobs at once, and damaged files: what chaos.py does beside killing and stopping processes. Linux only.

Two jobs: of the same run (one of them is refused and told who has it, or finds it finished), or of two runs with the
same data (one makes them, the other waits); a random time after one another.
Damage: a bit flipped, the file cut, emptied, overwritten with noise or removed, of each kind of file in a run that has
a teacher, a student half trained, and data. The run is then gone on with. It must either end with an error that names
the file, or with the results of the undisturbed run, bit for bit; never with a traceback. Left alone is what nobody
reads again (logs, TensorBoard's files).
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chaos_job import Job, results

NOT_READ_AGAIN = ("logs/", "tensorboard/", "flight_recorder/")


@dataclass
class Outcome:
    """How often what happened, and what should not have."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, str]] = field(default_factory=list)

    def add(self, what: str, end: str, problem: str | None) -> None:
        self.counts[f"{what}: {'WRONG' if problem else end}"] += 1
        if problem:
            self.wrong.append((what, problem))
        print(f"{time.strftime('%H:%M:%S')} {what}: {problem or end}", flush=True)


# ------------------------------------------------------------------------------------------------- two jobs


def start_pairs(
    folder: Path, count: int, args: argparse.Namespace, expected: dict[str, str], calm_s: float, rng: random.Random
) -> Outcome:
    """Start two jobs `count` times; the second one up to the length of a job later."""
    outcome = Outcome()
    for number in range(count):
        same_run = number % 2 == 0
        place = folder / str(number)
        first = Job(place, args.ranks, args.timeout)
        second = Job(place, args.ranks, args.timeout, first.name if same_run else "second", "second.txt")
        first.start()
        time.sleep(rng.choice([0.0, rng.uniform(0, calm_s)]))
        second.start()
        ends = [(job, ended(job)) for job in (first, second)]
        outcome.add(*_judged_pair(ends, same_run, expected))
    return outcome


def _judged_pair(ends: list[tuple[Job, int]], same_run: bool, expected: dict[str, str]) -> tuple[str, str, str | None]:
    """What it was, how it ended, and what was wrong with that."""
    what = "two jobs of one run" if same_run else "two runs that make the same data"
    refused = [job for job, status in ends if status != 0]
    said = {job: job.log.read_text() for job, _ in ends}
    waited = any("waiting for process" in text for text in said.values())
    end = "one is refused" if refused else "one waits for the other" if waited else "one after the other"
    if any("Traceback" in text for text in said.values()):
        return what, end, f"a traceback: {ends[0][0].folder}"
    if len(refused) > same_run or any("in use by process" not in said[job] for job in refused):
        return what, end, f"a job failed: {refused[0].log}"
    different = [str(job.run) for job, status in ends if status == 0 and dict(results(job)) != expected]
    return what, end, f"other results: {', '.join(different)}" if different else None


def ended(job: Job) -> int:
    """Exit status of a job that was started, once it has ended."""
    assert job.launcher is not None
    return job.launcher.wait()


# --------------------------------------------------------------------------------------------------- damage


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(1, max(2, path.stat().st_size))])


def _noise(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(path.stat().st_size))


def _empty(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


def _remove(path: Path, _: random.Random) -> None:
    path.unlink()


DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    "flipped": _flip,
    "cut": _cut,
    "emptied": _empty,
    "noise": _noise,
    "removed": _remove,
}


def damage_files(job: Job, count: int, expected: dict[str, str], rng: random.Random) -> Outcome:
    """Damage `count` files of a finished job, one at a time, each after the job was put back half finished."""
    outcome, saved = Outcome(), job.folder.with_name("saved")
    if not count:
        return outcome
    half_finish(job)
    shutil.copytree(job.folder, saved)
    for path, kind in _deck(saved, rng)[:count]:
        shutil.rmtree(job.folder)
        shutil.copytree(saved, job.folder)  # with the times of its files
        job.log.unlink(missing_ok=True)
        DAMAGE[kind](job.folder / path, rng)
        job.start()
        outcome.add(*_judged_damage(job, ended(job), path, kind, expected))
    return outcome


def half_finish(job: Job) -> None:
    """Take away what came after the teacher and half of the student."""
    for path in ("alone", "export", "result.json", "student/model.safetensors"):
        found = job.run / path
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink(missing_ok=True)
    checkpoints = sorted((job.run / "student" / "checkpoints").glob("step_*"))
    for newest in checkpoints[1:]:
        shutil.rmtree(newest)


def _deck(saved: Path, rng: random.Random) -> list[tuple[Path, str]]:
    """Every file with every kind of damage, in an order that soon has had each kind of file."""
    kinds: dict[str, list[tuple[Path, str]]] = {}
    for path in sorted(path.relative_to(saved) for path in saved.rglob("*") if path.is_file()):
        if (path.suffix == ".txt" and len(path.parts) == 1) or any(part in path.as_posix() for part in NOT_READ_AGAIN):
            continue
        for damage in DAMAGE:
            kinds.setdefault(re.sub(r"\d+", "N", path.as_posix()), []).append((path, damage))
    for cards in kinds.values():
        rng.shuffle(cards)
    deck: list[tuple[Path, str]] = []
    while any(kinds.values()):
        order = [cards for cards in kinds.values() if cards]
        rng.shuffle(order)
        deck += [cards.pop() for cards in order]
    return deck


def _judged_damage(
    job: Job, status: int, path: Path, kind: str, expected: dict[str, str]
) -> tuple[str, str, str | None]:
    what = f"{kind} {re.sub(r'[0-9]+', 'N', path.as_posix())}"
    said = job.log.read_text()
    if "Traceback" in said:
        return what, "", f"a traceback: {_last_lines(said)}"
    if status:
        named = any(name in said for name in (path.name, path.parent.name) if name)
        return what, "refused by name", None if named else f"refused without its name: {_last_lines(said)}"
    got = dict(results(job))
    different = [name for name in expected if got.get(name) != expected[name] and path.name not in name]
    return what, "the same results", f"other results: {', '.join(different)}" if different else None


def _last_lines(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-3:])
