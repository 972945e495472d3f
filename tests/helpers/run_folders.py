"""Folders as runs leave them, made in no time: the real writers, with cosines drawn at random, not trained for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from helpers.jobs import tree
from partialkd.config import RunConfig
from partialkd.config.load import parse_config, save_config
from partialkd.data.formats.verification_bin import write_bin
from partialkd.data.images.encode import encode_jpeg
from partialkd.evaluate.intervals import People
from partialkd.evaluate.kept_pairs import write_pairs
from partialkd.evaluate.verification import ScoredPairs
from partialkd.storage.atomic_files import write_json
from partialkd.training.progress import Progress
from partialkd.training.step_log import PARTS
from partialkd.world.world import World

PAIRS, PEOPLE = 120, 12


def pairs(separation: float, seed: int = 0, count: int = PAIRS) -> ScoredPairs:
    """Every other pair is genuine; `separation`: how far apart the two kinds are, in deviations."""
    draw, who = np.random.default_rng(0), np.random.default_rng(seed + 1)
    same = np.arange(count) % 2 == 0
    first = draw.integers(0, PEOPLE, count)
    second = np.where(same, first, (first + draw.integers(1, PEOPLE, count)) % PEOPLE)
    cosines = 0.1 * who.normal(size=count) + 0.1 * separation * same
    return ScoredPairs(np.clip(cosines, -1, 1), same, People(first, second))


def faces_bin(path: Path, count: int = PAIRS) -> None:
    """Drawings; the same two in turn, for nobody looks closely."""
    drawn = [encode_jpeg(np.full((32, 32, 3), shade, np.uint8)) for shade in (60, 200)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bin(path, drawn * count, np.arange(count) % 2 == 0)


def made_run(
    folder: Path,
    name: str = "trial",
    /,
    seed: int = 0,
    networks: dict[str, float] | None = None,
    sets: tuple[str, ...] = ("faces",),
    steps: int = 40,
    finished: bool = True,
    **student: Any,
) -> Path:
    """A run of two phases. networks: how well each tells people apart; student: what its method has otherwise."""
    settings = tree(folder)
    settings["run"] |= {"name": name, "seed": seed}
    settings["student"]["method"] |= student
    settings["evaluate"]["sets"] = [str(folder / "data" / f"{one}.bin") for one in sets]
    config, run = parse_config(settings), folder / "runs" / name
    run.mkdir(parents=True)
    save_config(config, run / "config.toml")
    for phase in ("student", "alone"):
        with Progress(run, phase, steps, World(), RunConfig(name=name, tensorboard=False)) as progress:
            for step in range(1, steps + 1):
                parts = {f"time/{part}": 0.1 / len(PARTS) for part in PARTS}
                values = {"alpha": 1 - 1 / (step + 1), "cosine": 0.1, "grad_norm": 5.0 / step, "memory": 2e9, **parts}
                progress.log(step, 0, 10.0 / step, 0.1, 24 / 0.1, values)
    scored = {
        who: {one: pairs(far, seed) for one in sets}
        for who, far in (networks or {"student": 2.0, "alone": 1.0, "teacher": 3.0}).items()
    }
    for who, of in scored.items():
        write_pairs(run, who, of)
    facts = {"world_size": 1, "identities": 12, "images": 96, "device": "CPU, 2 cores", "device_type": "cpu"}
    start = {"time": "2026-01-01T00:00:00+00:00", **facts, "product_flops": 1e11, "torch": "2", "python": "3"}
    write_json(run / "starts.json", {"starts": [start]})
    if finished:
        by_set = {one: {who: asdict(of[one].scores(config.evaluate)) for who, of in scored.items()} for one in sets}
        write_json(run / "result.json", {"sets": by_set, "name": name, "seed": seed, "seconds": 12.5, **facts})
    return run
