"""The centres that a phase starts from: random, of the teacher (made once and kept in the run's folder), or given.

Where `centres.weights` gives rows, they take the place of what is made otherwise. What is left are new identities.
Trainable centres of theirs get the direction of the mean of the network's normalised embeddings of their images, and
the mean length of the given rows, so that they move at the same pace; moving averages what
`method.initial_centres` says.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from partialkd import checkpoint
from partialkd.centres import CentreStore
from partialkd.centres.store import DTYPES
from partialkd.config import AdaDistillConfig, PhaseConfig
from partialkd.context import RunContext
from partialkd.data.images.decode import DECODING
from partialkd.data.order.plan import ListedPlan, SequentialPlan
from partialkd.data.sources.class_counts import records_of
from partialkd.models.build import build_empty
from partialkd.models.saved import MODEL
from partialkd.models.weights import put_weights
from partialkd.run.finished import record_of
from partialkd.teacher.cache import TeacherCache
from partialkd.teacher.centres import class_means, fill_means, load_centres, load_or_make
from partialkd.teacher.classifier import classifier_rows, file_digest
from partialkd.teacher.supervision import Teaching, read_once
from partialkd.training.start import Start
from partialkd.training.start_centres import GivenCentres, own_places
from partialkd.world.passes import counted
from partialkd.world.shard import shard_of


def make_store(
    context: RunContext,
    phase: PhaseConfig,
    teacher: Teaching | None,
    resumed: bool = False,
    start: Start | None = None,
) -> CentreStore:
    """Make the centres that a phase starts from; collective."""
    store = _made(context, phase, teacher, resumed)
    if start is not None and (given := start.centres) is not None:
        context.world.together(lambda: given.fill(store))
        trainable = phase.method.centre_kind == "trainable"
        if trainable and phase.centres.new_identities == "means" and start.weights is not None:
            _fill_new(context, phase, store, given, start.weights)
    return store


def _made(context: RunContext, phase: PhaseConfig, teacher: Teaching | None, resumed: bool) -> CentreStore:
    """Make them as without given rows."""
    classes, world, method = context.source.num_classes, context.world, phase.method
    shard = shard_of(classes, world.rank, world.size)
    dim, dtype = phase.model.embedding_dim, DTYPES[phase.centres.store]
    device = torch.device("cpu") if phase.centres.memory == "host" else world.device
    kind = method.centre_kind
    if kind == "trainable":
        return CentreStore.random(shard, classes, dim, dtype, device, context.config.run.seed)
    if isinstance(method, AdaDistillConfig) and method.initial_centres != "teacher_means":
        exclude, seed = method.initial_centres == "exclude", context.config.run.seed
        return CentreStore.random(shard, classes, dim, dtype, device, seed, skip_unseen=exclude)
    assert teacher is not None
    return _of_teacher(context, teacher, dim, dtype, device, resumed)


def teacher_rows(
    context: RunContext, phase: PhaseConfig, teacher: Teaching | None, resumed: bool = False
) -> CentreStore | None:
    """Make the teacher's centres beside those of the method, where a term compares with both."""
    if not phase.teacher_rows:
        return None
    assert teacher is not None
    dtype, device = DTYPES[phase.centres.store], context.world.device
    return _of_teacher(context, teacher, teacher.embedding_dim, dtype, device, resumed)


def _of_teacher(
    context: RunContext, teacher: Teaching, dim: int, dtype: torch.dtype, device: torch.device, resumed: bool
) -> CentreStore:
    """Fill a store with the teacher's centres, made or as the run has kept them; collective."""
    classes, world = context.source.num_classes, context.world
    shard = shard_of(classes, world.rank, world.size)
    store = CentreStore.empty(shard, classes, dim, dtype, device, skip_unseen=True)
    facts = {
        "teacher": teacher.fingerprint,
        "data": context.source.fingerprint,
        "decoding": DECODING,
        "how": context.config.teacher.centres,
        "classifier": file_digest(context.config.teacher.classifier),
        "label_map": file_digest(context.config.teacher.label_map),
        **teacher.how,
    }
    begun = resumed and world.on_main(
        lambda: checkpoint.newest(context.folder / context.learner / "checkpoints") is not None
    )
    make = lambda s: fill_from_teacher(context, s, teacher)
    load_or_make(store, context.teaching_folder / "teacher_centres", facts, make, world, begun)
    return store


def _fill_new(
    context: RunContext, phase: PhaseConfig, store: CentreStore, given: GivenCentres, weights: dict[str, Tensor]
) -> None:
    """Fill the centres of new identities that have images; collective."""
    world, source, who = context.world, context.source, "the network to start from"
    records, present = records_of(source, given.new.numpy())
    if not len(records):
        return
    network = build_empty(phase.model, context.image_size)
    put_weights(network, weights, who, assign=True)
    network = network.to(world.device).eval().requires_grad_(False)
    plan = ListedPlan(records, context.config.evaluate.batch, world.rank, world.size)
    batches = context.stop.heeding(world, read_once(context, plan), "averaging embeddings of new identities")
    counting = counted(batches, "class means of new identities", plan.micro_steps, "batches")
    embed = lambda batch: network(batch.images) if len(batch.images) else torch.empty(0, store.dim)
    with torch.no_grad():
        class_means(store, counting, embed, plan.local_batch, world, source.name, who)
    old = store.length[given.survivors(store.shard).to(store.device)]
    total = world.sum(torch.tensor([old.sum(), len(old)], dtype=torch.float64, device=world.device))
    new = own_places(torch.from_numpy(present), store.shard)
    store.length[new.to(store.device)] = float(total[0] / total[1])


def fill_from_teacher(context: RunContext, store: CentreStore, teacher: Teaching) -> None:
    """Fill the store with class means, rows of a classifier, or centres of the run's own teacher; collective."""
    config = context.config.teacher
    if config.centres == "means" and isinstance(teacher.kept, TeacherCache):
        fill_means(store, teacher.kept.class_means(store.shard).to(store.device))
    elif config.centres == "means":
        plan = SequentialPlan(
            len(context.source), context.config.evaluate.batch, context.world.rank, context.world.size
        )
        batches, embed = teacher.batches(context, plan)
        heeded = context.stop.heeding(context.world, batches, "averaging the teacher's embeddings")
        heeded = counted(heeded, "class means of the teacher", plan.micro_steps, "batches")
        class_means(store, heeded, embed, plan.local_batch, context.world, context.source.name)
    elif config.source == "train":
        folder = context.folder / context.teacher_phase
        made = context.world.on_main(lambda: record_of(folder / MODEL))
        load_centres(store, folder / "centres", teacher.project, context.world, made)
    else:
        assert config.classifier is not None
        assert config.label_map is not None
        classifier_rows(store, Path(config.classifier), config.label_map, teacher.project, context.world)
