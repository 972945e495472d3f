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
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from partialkd.config import Config, PhaseConfig
from partialkd.context import RESULT, RunContext, as_generation
from partialkd.errors import PartialKDError, Preempted, text_of
from partialkd.evaluate.verification_tables import results_dict, results_table
from partialkd.export.onnx import export
from partialkd.models.saved import MODEL, open_model, save_model
from partialkd.planner.advice import beside_student, memory_advice
from partialkd.planner.devices import device_named
from partialkd.planner.plan import Ranks, plan_phase
from partialkd.report.run_report import write_report
from partialkd.run.begin import Job, prepare_job
from partialkd.run.checks import for_good
from partialkd.run.facts import facts_of
from partialkd.run.finished import check_finished, made_from
from partialkd.run.first_centres import make_store, teacher_rows
from partialkd.run.folder import owned_run
from partialkd.run.out_of_memory import advising
from partialkd.run.scores import score, score_trained
from partialkd.run.times import summed
from partialkd.storage.atomic_files import write_json
from partialkd.teacher.centres import save_centres
from partialkd.teacher.supervision import CACHE, Teaching, teach
from partialkd.training.phase_plan import key_of
from partialkd.training.trainer import Trainer
from partialkd.world import messages
from partialkd.world.numerics import set_numerics
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

_log = logging.getLogger(__name__)


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
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
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
