"""The whole job of one configuration: data, teacher, student, the student alone, evaluation, result.

    <run.folder>/<run.name>/
      config.toml                    the resolved configuration
      class_ids.txt                  of identities with names, or merged or left out: class id, data set, identity
      metrics.jsonl, tensorboard/    of all phases
      teacher/, student/, alone/     a phase each: checkpoints/, model.safetensors, centres/ (trainable ones)
      generation_1/, ...             with student.generations: the students before the last, which is student/
      teacher_centres/               centres made from the teacher, with their manifest; of a student that teaches the
                                     next, in its own folder
      logs/                          what each rank said, a file each
      flight_recorder/               each rank's last collectives, if one failed
      export/                        the student as model.onnx and model.safetensors
      times.json                     seconds of every start of the run, by phase
      starts.json                    when each start was, on what, with which versions
      scores/                        what each network made of each pair of the evaluation sets
      profile/                       with run.profile_steps
      result.json                    scores of all networks, and how they came about
      report.html                    all of this to look at (report/)

A phase that has its model.safetensors is finished; a resumed run loads it, and goes on with the phase that is not
from its newest checkpoint (folder.py).
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from partialkd.config import Config, PhaseConfig
from partialkd.context import RESULT, RunContext, as_generation
from partialkd.data.packing.prepare import prepare
from partialkd.data.sources.open import open_source
from partialkd.data.sources.source import CLASS_IDS, Source, save_class_ids
from partialkd.errors import PartialKDError, Preempted, text_of
from partialkd.evaluate.pairs import PairScores
from partialkd.evaluate.verification_tables import results_dict, results_table
from partialkd.export.onnx import export
from partialkd.models.saved import MODEL, open_model, save_model
from partialkd.planner.advice import beside_student, memory_advice
from partialkd.planner.devices import device_named
from partialkd.planner.plan import Ranks, plan_phase
from partialkd.report.run_report import write_report
from partialkd.run.checks import Checked, check_job, for_good, phases_of
from partialkd.run.facts import facts_of, note_start
from partialkd.run.finished import check_finished, made_from
from partialkd.run.first_centres import make_store, teacher_rows
from partialkd.run.folder import as_begun_in_its_folder, check_run, open_run, owned_run, run_folder
from partialkd.run.out_of_memory import advising
from partialkd.run.scores import Scores, keep_pairs, keep_scores, score, score_trained
from partialkd.run.times import Times, earlier_starts, summed
from partialkd.storage.atomic_files import write_json
from partialkd.teacher.centres import save_centres
from partialkd.teacher.supervision import CACHE, Teaching, teach
from partialkd.training.phase_plan import check_batch, key_of
from partialkd.training.trainer import Trainer
from partialkd.world import flight_recorder, messages
from partialkd.world.numerics import set_numerics
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


def run_job(config: Config, world: World, resume: str = "never", extend: bool = False) -> dict[str, Any]:
    """Run the whole job, collectively; returns what result.json holds."""
    began = time.perf_counter()
    messages.set_level(config.run.log_level)
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first product
    set_numerics(world.device, config.run.tf32, config.run.deterministic)
    torch.use_deterministic_algorithms(config.run.deterministic)
    with StopSignals() as stop, owned_run(config, world, stop):
        with for_good(world):
            job = prepare_job(config, world, resume, stop, extend, began)
        try:
            return _run(job)
        finally:
            job.times.note()


def _run(job: Job) -> dict[str, Any]:
    """Run all phases, collectively: their scores, the result and the export."""
    context, world, config = job.context, job.context.world, job.context.config  # as the run was begun
    student = run_students(job, make_teacher(job))
    job.enter("teacher", job.checked.scores)
    if config.alone:
        evaluate(job, "alone", run_phase(job, "alone", config.alone, None))
    result = finish(job)
    folder = context.folder / "export"
    world.on_main(lambda: export(student.state_dict(), config.student.model, context.image_size, folder))
    if world.is_main:
        _log.info(f"{folder}: the student as model.onnx and model.safetensors")
        _report(context)
    return result


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
    facts = world.on_main(lambda: stop.cut_short("making the data", lambda: prepare(config.data)))
    if world.is_main and facts:
        _log.info(f"{config.data.path}: {', '.join(f'{key} {value}' for key, value in facts.items())}")
    source = world.together(lambda: open_source(config.data))
    context = RunContext(config, world, source, run_folder(config), stop)
    return Looked(context, resume, check_job(context, resume, longer), facts)


def dry_run(config: Config, world: World, resume: str = "never", extend: bool = False) -> None:
    """Do all that a run does before its first step, collectively, and end there.

    Data that the configuration makes are made; the run's folder is neither begun nor moved aside.
    """
    messages.set_level(config.run.log_level)
    with StopSignals() as stop, for_good(world):
        looked = look_at_job(config, world, resume, stop, extend)
    source, names = looked.context.source, ", ".join(phases_of(looked.context.config))
    if world.is_main:
        found = f"{len(source)} images of {source.num_classes} identities, {names} on {world.size} ranks"
        _log.info(f"{found}: fit to run; {looked.context.folder} is as it was")


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


# ------------------------------------------------------------------------------------------------- phases


def make_teacher(job: Job) -> Teaching | None:
    """Open the teacher of the configuration, trained first if that says so, and judged before anything relies on it."""
    context, config, checked = job.context, job.context.config.teacher, job.checked
    teaching, checked.teaching = checked.teaching, None  # nobody needs it longer than its students
    if config.source == "none" or teaching is not None:
        return teaching
    train = config.train if config.source == "train" else None
    teaching = teach(context, run_phase(job, "teacher", train, None) if train else None, checked.network)
    checked.network = None
    if teaching.cache_seconds is not None:
        job.times.add(CACHE, teaching.cache_seconds)
    if train:
        checked.scores = score_trained(context, teaching, job.resumed)
    return teaching


def run_students(job: Job, teacher: Teaching | None) -> nn.Module:
    """Train the student, collectively; with `student.generations` each teaches the next, and the last is returned.

    All are scored and kept.
    """
    names = job.context.config.student.names
    for name, following in itertools.zip_longest(names, names[1:]):
        network = run_phase(job, name, job.context.config.student, teacher)
        evaluate(job, name, network)
        if following is not None:
            teacher = None  # before the next takes its place
            teacher = teach(as_generation(job.context, following), network)
            if teacher.cache_seconds is not None:
                job.times.add(f"{name} {CACHE}", teacher.cache_seconds)
    return network


def run_phase(job: Job, name: str, phase: PhaseConfig, teacher: Teaching | None) -> nn.Module:
    """Collective. Train one network, or load it where an earlier start of this run has finished it."""
    context, world = as_generation(job.context, name), job.context.world
    folder = context.folder / name
    if context.stop.agreed(world):
        raise Preempted(f"stopped before {name}")
    taught_by = teacher.fingerprint if teacher else None
    start = job.checked.starts[name]
    if job.resumed and world.on_main(lambda: check_finished(context, name, phase, taught_by, start.facts)):
        return world.together(lambda: open_model(folder / MODEL)[0].to(world.device))
    with job.times.phase(name), advising(key_of(name), world, lambda: _memory_advice(context, name, phase)):
        store = make_store(context, phase, teacher, job.resumed, start)
        rows = teacher_rows(context, phase, teacher, job.resumed)
        live = (teacher.network or teacher.kept) if teacher else None
        least = least_seconds(context, name, phase, teacher)
        trainer = Trainer(name, phase, context, store, live, job.times.note, rows, start, least)
        if world.is_main and phase.ema_decay is not None:
            _log.info(f"{name}: the moving average of its weights (ema_decay) is what is scored, kept and exported")
        try:
            network = trainer.run(job.resumed)
        finally:
            job.times.move(name, f"{name} scoring", trainer.scoring.seconds)
        more = made_from(context, name, phase, taught_by, start.facts)
        if phase.method.centre_kind == "trainable":
            facts = {"phase": name, "classes": store.num_classes, **more}
            save_centres(trainer.centres.store, folder / "centres", facts, world)
        world.on_main(lambda: save_model(folder / MODEL, network, phase.model, context.image_size, more))
        trainer.close()
    return network


def least_seconds(context: RunContext, name: str, phase: PhaseConfig, teacher: Teaching | None) -> float | None:
    """Seconds of the products of a rank's step at the device's full rate; None where that or the teacher is unknown."""
    device = device_named(torch.cuda.get_device_name()) if context.world.device.type == "cuda" else None
    runs = teacher is not None and teacher.network is not None and phase.teacher_use == "every batch"
    beside = beside_student(context.config) if name == "student" and runs else None
    if device is None or (runs and beside is None):
        return None
    ranks = Ranks.of(context.config, context.world.size, cuda=True)
    plan = plan_phase(phase, context.config.data, context.source.num_classes, ranks, beside)
    return sum(plan.flops.values()) / device.flops


def _memory_advice(context: RunContext, name: str, phase: PhaseConfig) -> str:
    ranks = Ranks.of(context.config, context.world.size, context.world.device.type == "cuda")
    beside = beside_student(context.config) if name in context.config.student.names else None
    return memory_advice(key_of(name), phase, context.config.data, context.source.num_classes, ranks, beside)


# ------------------------------------------------------------------------------------------------ results


def evaluate(job: Job, who: str, embed: Callable[..., torch.Tensor]) -> None:
    """Collective. Score a network on all sets."""
    job.enter(who, score(job.context, who, embed))


def finish(job: Job) -> dict[str, Any]:
    """Print the table and write result.json, on rank 0; every rank returns the result. Seconds are of all starts."""
    context, world, starts = job.context, job.context.world, job.times.all_starts()
    times = summed(starts)
    result = {
        **results_dict(job.scores),
        "name": context.config.run.name,
        "seed": context.config.run.seed,
        **times,
        "starts": starts,
        "data": job.data_facts,
        **facts_of(context),
    }
    if world.is_main:
        write_json(context.folder / RESULT, result)
        if job.scores:
            messages.output(*results_table(job.scores).get_string().splitlines())
        of_starts = f" in {len(starts)} starts" if len(starts) > 1 else ""
        _log.info(f"{context.folder}: {times['seconds']:.0f} s{of_starts} on {world.size} ranks")
    return result


def _report(context: RunContext) -> None:
    """Write the report, on rank 0; no run ends because of what it looks like."""
    if not context.config.run.report:
        return
    try:
        path = write_report(context.folder)
    except (PartialKDError, OSError) as error:
        _log.warning(f"{context.folder}: no report could be written: {text_of(error)}")
    except Exception as error:
        _log.warning(f"{context.folder}: no report was written, which is a fault of the program", exc_info=error)
    else:
        messages.output(f"report: {path}")
