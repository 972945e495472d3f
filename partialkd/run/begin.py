"""What a run does before its first step: data and everything else are checked, and only then is its folder begun."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from partialkd.config import Config
from partialkd.context import RunContext
from partialkd.data.packing.prepare import prepare
from partialkd.data.sources.open import open_source
from partialkd.data.sources.source import CLASS_IDS, Source, save_class_ids
from partialkd.evaluate.pairs import PairScores
from partialkd.run.checks import Checked, check_job, for_good, phases_of
from partialkd.run.facts import note_start
from partialkd.run.folder import as_begun_in_its_folder, check_run, open_run, run_folder
from partialkd.run.scores import Scores, keep_pairs, keep_scores
from partialkd.run.times import Times, earlier_starts
from partialkd.training.outlets import require_outlets
from partialkd.training.phase_plan import check_batch, key_of
from partialkd.world import flight_recorder, messages
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

_log = logging.getLogger(__name__)


@dataclass
class Job:
    """A run of all its phases, and what has come out of it so far."""

    context: RunContext
    resumed: bool
    checked: Checked  # what was opened before the run's folder
    times: Times
    data_facts: dict[str, Any] | None = None  # of data the run made for itself: what is in it and what was left out
    scores: dict[str, dict[str, PairScores]] = field(default_factory=dict)  # by set, by network

    def enter(self, who: str, scores: Scores) -> None:
        """Put a network's scores into the table."""
        for name, one in scores.items():
            self.scores.setdefault(name, {})[who] = one


@dataclass
class Looked:
    """What a run was found to be before its folder is touched."""

    context: RunContext
    resume: str
    checked: Checked
    data_facts: dict[str, Any] | None


def look_at_job(config: Config, world: World, resume: str, stop: StopSignals, extend: bool = False) -> Looked:
    """Prepare the data and check everything (checks.py), collectively; nothing of the run's folder is touched."""
    config, resume, longer = world.on_main(lambda: _resumed(config, world, resume, extend))
    for name, phase in phases_of(config).items():
        check_batch(key_of(name), phase, world.size)
    world.on_main(lambda: require_outlets(config.run))
    facts = world.on_main(lambda: stop.cut_short("making the data", lambda: prepare(config.data)))
    if world.is_main and facts:
        _log.info(f"{config.data.path}: {', '.join(f'{key} {value}' for key, value in facts.items())}")
    source = world.together(lambda: open_source(config.data))
    context = RunContext(config, world, source, run_folder(config), stop)
    return Looked(context, resume, check_job(context, resume, longer), facts)


def dry_run(config: Config, world: World, resume: str = "never", extend: bool = False) -> dict[str, Any]:
    """Do all that a run does before its first step, collectively, and end there -> what was found to be fit.

    Data that the configuration makes are made; the run's folder is neither begun nor moved aside.
    """
    messages.set_level(config.run.log_level)
    with StopSignals() as stop, for_good(world):
        looked = look_at_job(config, world, resume, stop, extend)
    source, names = looked.context.source, list(phases_of(looked.context.config))
    if world.is_main:
        found = f"{len(source)} images of {source.num_classes} identities, {', '.join(names)} on {world.size} ranks"
        _log.info(f"{found}: fit to run; {looked.context.folder} is as it was")
    sizes = {"images": len(source), "identities": source.num_classes, "ranks": world.size}
    accuracy = {name: scores.accuracy for name, scores in looked.checked.scores.items()}
    return {"run": looked.context.folder, **sizes, "phases": names, "teacher": accuracy}


def prepare_job(
    config: Config,
    world: World,
    resume: str,
    stop: StopSignals,
    extend: bool = False,
    began: float | None = None,
) -> Job:
    """Prepare data and folder, collectively; the folder is not touched before all has been checked (checks.py).

    began: when this start of the run did, by `time.perf_counter`.
    """
    looked = look_at_job(config, world, resume, stop, extend)
    context, resume, checked, facts = looked.context, looked.resume, looked.checked, looked.data_facts
    config, source = context.config, context.source
    folder = world.on_main(lambda: _open(config, world, resume, extend))
    world.on_main(lambda: _say_identities(source, folder))
    if source.facts:
        facts = {**(facts or {}), **source.facts}
    flight_recorder.enable(folder / flight_recorder.FOLDER)
    messages.log_into(folder / messages.LOGS / f"rank_{world.rank}.log")
    before = world.on_main(lambda: earlier_starts(folder))
    times = Times(folder, before, world.is_main, time.perf_counter() if began is None else began)
    job = Job(context, resume != "never", checked, times, facts)
    if checked.scores and checked.fingerprint:
        keep_scores(context, checked.fingerprint, checked.scores)
    if checked.pairs:
        keep_pairs(context, "teacher", checked.pairs)
    world.on_main(lambda: note_start(context))
    return job


def _say_identities(source: Source, folder: Path) -> None:
    """Say what is used of each data set, and save which class id is whom; on rank 0."""
    for number, fact in enumerate(source.facts.get("parts", ())):
        _log.info(f"data set {number}: {', '.join(f'{key} {value}' for key, value in fact.items())}")
    if source.facts or source.names.known() is not None:
        save_class_ids(source, folder / CLASS_IDS)


def _resumed(config: Config, world: World, resume: str, extend: bool) -> tuple[Config, str, list[str]]:
    """Find what to go on with, how (always, where torchrun starts ranks again), and what is made longer; on rank 0."""
    resume = "auto" if world.remembers("begun") else resume
    config = as_begun_in_its_folder(config, resume)
    return config, resume, check_run(config, resume, extend)


def _open(config: Config, world: World, resume: str, extend: bool) -> Path:
    """Begin the folder of the run; on rank 0."""
    folder = open_run(config, resume, extend)
    world.remember("begun")
    return folder
