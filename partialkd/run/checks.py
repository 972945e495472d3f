"""Checks of a job before its run's folder is touched: nothing is moved aside or begun in vain.

Opened and looked at here: evaluation sets, the order of records and the schedule of every phase, its network and
method, the weights that it starts from, compilers, the teacher (its file, its kept embeddings, its classifier with the
label map, what it makes of real images, its accuracy), and finished phases that are to be gone on with. What is left
for later is what the run makes itself: a teacher that it trains, and its own cache of embeddings.
Errors: ConfigError naming the key, TeacherError, DataError and CheckpointError naming the file, on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from partialkd.config import AdaDistillConfig, Config, PhaseConfig
from partialkd.context import RunContext, as_generation
from partialkd.errors import CheckpointError, ConfigError, DataError, TeacherError
from partialkd.evaluate.verification import look_at_sets
from partialkd.methods import make_method
from partialkd.models.build import build_empty
from partialkd.models.compiled import require_compiler
from partialkd.run.finished import check_finished
from partialkd.run.scores import Pairs, Scores, judge_teacher, score, scored_before
from partialkd.storage.manifest import MANIFEST
from partialkd.teacher.classifier import own_rows
from partialkd.teacher.ensemble import Ensemble, described
from partialkd.teacher.network import Teacher
from partialkd.teacher.supervision import CACHE, Teaching, check_width, look_at, open_network, teach
from partialkd.training.phase_plan import key_of, plan_of
from partialkd.training.start import Start, look_at_start
from partialkd.training.tapping import wires_of
from partialkd.world.shard import shard_of
from partialkd.world.world import World


@contextmanager
def for_good(world: World) -> Iterator[None]:
    """Mark errors of files in here as permanent: neither torchrun nor Slurm need start the job again.

    Not so in ranks that torchrun started again: what was there before will be there once more.
    """
    try:
        yield
    except (DataError, TeacherError, CheckpointError) as error:
        error.permanent = not world.remembers("begun")
        raise


@dataclass
class Checked:
    """Parts that were opened for the checks and are used afterwards."""

    teaching: Teaching | None = None  # None: there is none, or it is to be made in the run's folder
    network: Teacher | None = None  # to make the run's own cache with
    fingerprint: str | None = None  # of the teacher
    scores: Scores = field(default_factory=dict)  # of the teacher
    pairs: Pairs = field(default_factory=dict)  # likewise, where it was scored now
    starts: dict[str, Start] = field(default_factory=dict)  # what each phase starts from


def phases_of(config: Config) -> dict[str, PhaseConfig]:
    """List the phases of a run that have a section of their own: of a chain of students, the last."""
    return {name: phase for name, phase in config.phases.items() if name not in config.student.names[:-1]}


def check_job(context: RunContext, resume: str, longer: list[str]) -> Checked:
    """Check everything, collectively. resume: as on the command line; longer: phases that are made longer."""
    config, world = context.config, context.world
    look_at_sets(config.evaluation, context.image_size, config.data.resize, world)
    for name, phase in phases_of(config).items():
        plan_of(name, phase, config, context.source, world)
        world.together(partial(_check_network, name, phase, context.image_size))
    _check_compilers(context)
    phases, resumed = phases_of(config), resume != "never"
    starts = {name: Start() for name in config.student.names}  # generations start from nothing
    starts |= {name: look_at_start(context, name, key_of(name), phase, resumed) for name, phase in phases.items()}
    _check_finished_phases(context, resume, longer, starts)
    checked = check_teacher(context, resumed) if config.teacher.source != "none" else Checked()
    checked.starts = starts
    world.together(partial(_check_taps, context, checked))
    return checked


def _check_taps(context: RunContext, checked: Checked) -> None:
    """Look at the blocks that terms name in the student and in the teacher."""
    config, size = context.config, context.image_size
    if all(term.taps is None for term in config.student.terms):
        return
    opened = checked.teaching and checked.teaching.network
    if opened:
        teacher = opened.network
    else:
        assert config.teacher.train is not None  # kept embeddings have no layers, which the configuration knows
        teacher = build_empty(config.teacher.train.model, size)
    wires_of(config.student, "student", build_empty(config.student.model, size), teacher)
    if config.student.generations > 1:
        twins = [build_empty(config.student.model, size) for _ in range(2)]
        try:
            wires_of(config.student, "student", *twins)
        except ConfigError as error:
            raise ConfigError(f"student.generations: a student that teaches has other blocks: {error}") from error


def _check_network(name: str, phase: PhaseConfig, image_size: int) -> None:
    try:
        build_empty(phase.model, image_size)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{key_of(name)}.model: cannot be built for images of {image_size} pixels: {error}"
        ) from error
    make_method(phase.method)


def _check_compilers(context: RunContext) -> None:
    config, world = context.config, context.world
    keys = [f"{key_of(name)}.compile" for name, phase in phases_of(config).items() if phase.compile]
    embeds = config.teacher.cache in (None, "auto") or bool(config.evaluate.sets)  # "auto": may still be to be made
    for key in ["teacher.compile"] * (config.teacher.compile and embeds) + keys:
        world.together(partial(require_compiler, world.device, key))


def _check_finished_phases(context: RunContext, resume: str, longer: list[str], starts: dict[str, Start]) -> None:
    """Check what a resumed run would believe: all but what it makes longer, or what is before where it goes back to."""
    if resume == "never":
        return
    phases, chain = context.config.phases, ("teacher", *context.config.student.names)
    names = list(phases)
    going_back = None if resume == "auto" else Path(resume).resolve().parent.parent.name
    anew = {name for name in names for one in longer if one in chain and name in chain[chain.index(one) :]} | {*longer}
    for name in names[: names.index(going_back)] if going_back in names else names:
        if name not in anew:
            own, start = as_generation(context, name), starts[name].facts
            context.world.on_main(partial(check_finished, own, name, phases[name], None, start))


# ------------------------------------------------------------------------------------------------ the teacher


def check_teacher(context: RunContext, resumed: bool) -> Checked:
    """Open, check and score the teacher, collectively; one that the run trains is there later."""
    config, world = context.config.teacher, context.world
    if config.source == "train":
        return Checked()
    if config.cache == "auto":
        fingerprint, _ = world.on_main(lambda: described(config, context.image_size))
        checked = Checked()
    else:
        teaching = teach(context, None)
        checked, fingerprint = Checked(teaching), teaching.fingerprint
    checked.fingerprint = fingerprint
    strict = not (resumed and _has_begun(context))
    kept = scored_before(context, fingerprint) if resumed else None
    to_score = not config.embeddings_alone and bool(context.config.evaluate.sets) and kept is None
    network = checked.teaching.network if checked.teaching else None
    to_make = config.cache == "auto" and not world.on_main((context.folder / CACHE / MANIFEST).exists)
    if network is None and (to_score or to_make):
        network = open_network(context)
        check_width(context.config, network.embedding_dim)
        look_at(network, context)
    checked.network = network if to_make else None
    checked.scores = kept or {}
    if to_score and network:
        checked.scores = score(context, "teacher", network.embed, checked.pairs.update)
    if to_score and isinstance(network, Ensemble):
        for member in network.members:
            scores = score(context, "teacher", member.embed, lambda _: None)
            judge_teacher(context, scores, strict=strict, path=member.origin)
    opened = checked.teaching or network
    if opened:
        _check_classifier(context, opened.project, opened.embedding_dim)
    judge_teacher(context, checked.scores, strict)
    return checked


def _check_classifier(context: RunContext, project: Callable[[Tensor], Tensor], dim: int) -> None:
    """Read once the rows that centres are to be made of, if they come from a file; dim: of the teacher's embedding."""
    config, student, world = context.config.teacher, context.config.student, context.world
    method = student.method
    random = isinstance(method, AdaDistillConfig) and method.initial_centres != "teacher_means"
    unread = (random or method.teacher_use == "none") and not student.teacher_rows
    if config.centres != "classifier" or unread:
        return
    assert config.classifier is not None
    assert config.label_map is not None
    path, label_map, classes = Path(config.classifier), config.label_map, context.source.num_classes
    shard = shard_of(classes, world.rank, world.size)
    world.together(lambda: own_rows(path, label_map, shard, classes, dim, project, world.device))


def _has_begun(context: RunContext) -> bool:
    """Return whether a student has already learnt from this teacher; collective."""
    first = context.folder / context.config.student.names[0]
    return context.world.on_main(lambda: any(first.glob("*")))
