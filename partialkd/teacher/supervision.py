"""Supervision of a student: a network that embeds each batch, or embeddings that were kept of it.

Kept embeddings come from a teacher cache (`teacher.cache`; made here where the run is to make its own), from the
records themselves (`teacher.source = "records"`) or from an .npz (`"npz"`). The network is then opened only to make the
cache, to project the rows of a classifier, and to be scored; no rank holds it while the student is trained. A
cache is compared with the teacher's file and the data, and all of its blocks with their checksums, before anything is
trained.
Errors: TeacherError and DataError naming the file, ConfigError naming the key, on every rank.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from partialkd.config import Config, EnsembleInputs, InputConfig
from partialkd.context import RunContext
from partialkd.data.batch import FaceBatch
from partialkd.data.images.decode import DECODING
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.plan import Plan, SequentialPlan
from partialkd.data.sources.source import Source
from partialkd.errors import ConfigError, TeacherError
from partialkd.models.saved import MODEL, open_model
from partialkd.storage.atomic_files import remove_folder
from partialkd.teacher.cache import CacheFacts, KeptEmbeddings, TeacherCache, kept_before
from partialkd.teacher.cache_pass import embed_records
from partialkd.teacher.cache_writer import CacheWriter, Unfinished
from partialkd.teacher.embedded_records import RecordEmbeddings, check_decoding
from partialkd.teacher.ensemble import described, open_teacher
from partialkd.teacher.network import Teacher, wrap_teacher
from partialkd.teacher.npz_embeddings import FLIPPED, NpzEmbeddings
from partialkd.world.shard import shard_of

_log = logging.getLogger(__name__)
CACHE = "teacher_cache"  # in the run's folder (a generation's, if it teaches), with teacher.cache = "auto"


@dataclass(frozen=True)
class Teaching:
    """A source of embeddings, one of network and kept. project: for the rows of a classifier, as embeddings are."""

    fingerprint: str
    embedding_dim: int
    project: Callable[[Tensor], Tensor]
    network: Teacher | None = None
    kept: KeptEmbeddings | None = None
    cache_seconds: float | None = None  # where this start of the run has made its cache

    def batches(self, context: RunContext, plan: Plan) -> tuple[Iterator[FaceBatch], Callable[[FaceBatch], Tensor]]:
        """Read the records of a plan, with what embeds a batch of them; images where a network is to see them."""
        if self.network is not None:
            network = self.network
            return read_once(context, plan), lambda batch: network.embed(batch.images)
        assert self.kept is not None
        kept, device = self.kept, context.world.device
        return _unread(context, plan), lambda batch: kept.rows(batch.records, batch.flipped).to(device)

    @property
    def how(self) -> dict[str, str]:
        """Say, for the manifest of centres, what rounds the embeddings they are made of."""
        return {"cache": self.kept.facts.dtype} if isinstance(self.kept, TeacherCache) else {}


def teach(context: RunContext, trained: nn.Module | None, opened: Teacher | None = None) -> Teaching:
    """Open what the configuration says, collectively.

    trained: the network of this run's own teacher. opened: one of a file, to make the run's own cache with.
    """
    config, data = context.config.teacher, context.config.data
    if config.source == "records":
        dim = data.embeddings or 0
        folders = [Path(part.path) for part in data.parts or (data,)]
        context.world.together(lambda: check_decoding(folders))
        kept = context.world.together(lambda: RecordEmbeddings(context.source, dim))
        teaching = Teaching(kept.fingerprint, dim, lambda rows: rows, kept=kept)
    elif config.source == "npz":
        teaching = _from_npz(context)
    elif config.cache is None:
        network = open_network(context, trained)
        teaching = Teaching(network.fingerprint, network.embedding_dim, network.project, network)
    else:
        cache, seconds = _cache(context, trained, opened)
        project = lambda rows: _open(context, None, runs=False).project(rows)
        teaching = Teaching(cache.facts.teacher, cache.dim, project, kept=cache, cache_seconds=seconds)
    check_width(context.config, teaching.embedding_dim)
    if teaching.network is not None:
        look_at(teaching.network, context)
    return teaching


def _from_npz(context: RunContext) -> Teaching:
    kept = context.world.together(lambda: NpzEmbeddings(Path(context.config.teacher.path or ""), context.source))
    if context.config.data.flip and not kept.mirrored and context.config.student.teacher_use == "every batch":
        rule = f"must be false: {kept.path} has no array {FLIPPED}, of the mirrored images"
        raise ConfigError(f"data.flip {rule}, got true")
    return Teaching(kept.fingerprint, kept.dim, lambda rows: rows, kept=kept)


def check_width(config: Config, emitted: int) -> None:
    """Raise ConfigError where the student's embedding must be as long as the teacher's, and is not."""
    wanted = config.student.model.embedding_dim
    if config.student.same_dim and emitted != wanted:
        rule = f"must be the teacher's {emitted} (or set teacher.project_to = {wanted})"
        raise ConfigError(f"student.model.embedding_dim: {rule}, got {wanted}")


def open_network(context: RunContext, trained: nn.Module | None = None) -> Teacher:
    """Open the teacher's network; collective."""
    return context.world.together(lambda: _open(context, trained))


def _open(context: RunContext, trained: nn.Module | None, runs: bool = True) -> Teacher:
    """Open it, compiled where the configuration says so, unless it is not to embed anything (`runs`)."""
    config, device, student = context.config.teacher, context.world.device, context.config.student
    batch = student.global_batch // student.accumulation // context.world.size
    if not runs:
        config = config.model_copy(update={"compile": False})
    if config.source != "train":
        return open_teacher(config, context.image_size, device, batch)
    network = open_model(context.folder / context.teacher_phase / MODEL)[0] if trained is None else trained
    size, dim = context.image_size, config.project_to
    return wrap_teacher(network, size, device, dim, config.compile, batch, config.precision)


def look_at(teacher: Teacher, context: RunContext) -> None:
    """Raise TeacherError unless the teacher tells real images apart; collective."""
    source, world = context.source, context.world
    plan = SequentialPlan(len(source), 8, world.rank, world.size)
    loader = open_loader(context.config.data, source, plan, world.device)
    world.together(lambda: teacher.check(next(iter(loader.epoch(0))).images))
    loader.close()


def read_once(context: RunContext, plan: Plan) -> Iterator[FaceBatch]:
    """Yield the batches of a plan, with their images."""
    loader = open_loader(context.config.data, context.source, plan, context.world.device)
    try:
        yield from loader.epoch(0)
    finally:
        loader.close()


def _unread(context: RunContext, plan: Plan) -> Iterator[FaceBatch]:
    """Yield batches without their images."""
    for step in range(plan.micro_steps):
        indices = plan.indices(0, step)
        labels = context.source.labels(int(indices[0]), int(indices[-1]) + 1) if len(indices) else indices
        nothing, records = torch.empty(len(indices), 0), torch.from_numpy(indices)
        plain = torch.zeros(len(indices), dtype=torch.bool)
        yield FaceBatch(nothing, torch.from_numpy(labels).to(context.world.device), records, plain)


# ------------------------------------------------------------------------------------------------- cache


def facts_of(
    config: Config, source: Source, fingerprint: str, accepts: InputConfig | EnsembleInputs, dim: int, dtype: str
) -> CacheFacts:
    """Collect what a cache of this configuration is."""
    preprocessing = {
        "image_size": config.data.image_size,
        "resize": config.data.resize,
        "decoding": DECODING,
        "input": accepts.model_dump(mode="json"),
        "project_to": config.teacher.project_to,
    }
    return CacheFacts(fingerprint, source.fingerprint, preprocessing, len(source), source.num_classes, dim, dtype)


def _cache(context: RunContext, trained: nn.Module | None, opened: Teacher | None) -> tuple[TeacherCache, float | None]:
    """Open the cache that the configuration names, or the run's own, made first where it is not there; collective.

    Beside it the seconds that the making took, None where nothing was made.
    """
    config, world = context.config.teacher, context.world
    own = config.cache == "auto"
    folder = context.teaching_folder / CACHE if own else Path(config.cache or "")
    accepts: InputConfig | EnsembleInputs
    if trained is not None:
        network = _open(context, trained, runs=False)
        fingerprint, accepts = network.fingerprint, network.inputs
    else:
        fingerprint, accepts = world.on_main(lambda: described(config, context.image_size))
    seconds = None
    if own and not world.on_main(lambda: _is_of(folder, context, fingerprint, accepts)):
        seconds = _make(context, trained, folder, opened)
    cache = world.together(lambda: kept_before(folder))
    wanted = facts_of(
        context.config, context.source, fingerprint, accepts, cache.dim, config.cache_dtype or cache.facts.dtype
    )
    world.together(lambda: cache.check(wanted))  # a host may have a disk of its own
    world.together(lambda: cache.verify(shard_of(len(cache.sums), world.rank, world.size)))
    return cache, seconds


def _is_of(folder: Path, context: RunContext, fingerprint: str, accepts: InputConfig | EnsembleInputs) -> bool:
    """Return whether the run's own cache is there, of this teacher and of this data; another one is removed."""
    if not folder.exists():
        return False
    try:
        found = kept_before(folder).facts
    except TeacherError:
        remove_folder(folder)
        return False
    dtype = context.config.teacher.cache_dtype or found.dtype
    if found == facts_of(context.config, context.source, fingerprint, accepts, found.dim, dtype):
        return True
    remove_folder(folder)
    return False


def _make(context: RunContext, trained: nn.Module | None, folder: Path, opened: Teacher | None) -> float:
    """Make the run's own cache, collectively -> the seconds it took."""
    start = time.perf_counter()
    network = opened or open_network(context, trained)
    if opened is None:
        look_at(network, context)
    make_cache(network, context, folder, "replace")
    return time.perf_counter() - start


def make_cache(network: Teacher, context: RunContext, folder: Path, unfinished: Unfinished) -> None:
    """Run the teacher once over the records, into `folder`; collective."""
    config, source, world, stop = context.config, context.source, context.world, context.stop
    dtype = config.teacher.cache_dtype or "fp16"
    facts = facts_of(config, source, network.fingerprint, network.inputs, network.embedding_dim, dtype)
    if world.is_main:
        _log.info(f"{folder}: {facts.records} records, plain and mirrored: {facts.bytes / 1e6:.1f} MB")
    heed = lambda turns: stop.heeding(world, turns, "keeping the teacher's embeddings")
    writer, batch = CacheWriter(folder, facts), config.evaluate.batch
    embed_records(writer, network.embed, config.data, source, batch, world, unfinished, heed)
