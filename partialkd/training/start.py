"""What a phase starts from: weights of a network and centres, read and checked before the run's folder is touched.

They matter for step 0 alone: the identity of a phase has fingerprints of what is in the files, and a phase that has a
checkpoint goes on without them. A file that has changed since then is an error; one that is gone, or lies somewhere
else, is not.
Errors: CheckpointError, TeacherError and DataError naming key and file, ConfigError naming the key.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partialkd.checkpoint.folder import complete, read_manifest
from partialkd.checkpoint.network import checkpoint_network, chosen, is_checkpoint
from partialkd.checkpoint.snapshot import PROGRESS
from partialkd.config import ModelConfig, PhaseConfig
from partialkd.context import RunContext
from partialkd.data.sources.old_rows import rows_of_classes
from partialkd.errors import CheckpointError, ConfigError, PartialKDError
from partialkd.models.build import build_empty
from partialkd.models.saved import FORMAT, MODEL, read_description, read_metadata
from partialkd.models.weights import put_weights, read_weights
from partialkd.models.wrapped import own_part
from partialkd.storage.finite import not_finite
from partialkd.storage.tensor_file import read_bytes
from partialkd.teacher.classifier import file_digest
from partialkd.teacher.network import state_digest
from partialkd.training.start_centres import GivenCentres, class_ids_of, open_rows, rows_digest
from partialkd.world.shard import shard_of

WEIGHTS, CENTRES = "weights", "centres.weights"  # in the identity of a phase, and after its key
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a phase starts from; without weights where it starts from none, or has begun already."""

    facts: dict[str, Any] = field(default_factory=lambda: {WEIGHTS: None, CENTRES: None})  # fingerprints
    weights: dict[str, Tensor] | None = None  # of the network, on the CPU
    centres: GivenCentres | None = None


def look_at_start(context: RunContext, name: str, key: str, phase: PhaseConfig, resumed: bool) -> Start:
    """Read and check what a phase starts from; collective. key: of the phase in the configuration."""
    if phase.weights is None and phase.centres.weights is None:
        return Start()
    world, folder = context.world, context.folder / name
    if resumed and world.on_main(lambda: _has_begun(folder)):
        return Start(world.on_main(lambda: _facts_of_begun(context, key, phase, folder)))
    world.on_main(lambda: _check_places(context, key, phase))
    weights = world.together(lambda: _network(context, key, phase))
    centres = world.together(lambda: _centres(context, key, phase))
    facts = world.on_main(lambda: {WEIGHTS: weights and state_digest(weights), CENTRES: _centres_digest(key, phase)})
    if world.is_main and centres is not None:
        used, new = int((centres.row_of >= 0).sum()), len(centres.new)
        _log.info(
            f"{centres.where}: {used} centres are taken over, {centres.rows.count - used} not used; {new} are new"
        )
    return Start(facts, weights, centres)


def read_network(path: Path, config: ModelConfig, image_size: int) -> dict[str, Tensor]:
    """Read the state_dict of a network from a file, a checkpoint or a run's folder, if it fits and is finite.

    In files of other programs it may stand under a prefix, with other modules beside it (models/wrapped.py).
    """
    found = chosen(path)
    if is_checkpoint(found):
        state = checkpoint_network(found)[0].state_dict()
    else:
        if found.suffix == ".safetensors" and read_metadata(found).get("format") == FORMAT:
            read_description(found)  # it must take images as ours do
        state = read_weights(found)
    if problem := not_finite(state):
        raise CheckpointError(f"{found}: {problem}")
    network = build_empty(config, image_size)
    put_weights(network, own_part(network, state, str(found)), str(found), assign=True)
    return network.state_dict()


@contextmanager
def naming_key(key: str) -> Iterator[None]:
    """Put the key before the text of errors."""
    try:
        yield
    except PartialKDError as error:
        raise type(error)(f"{key}: {error}") from error


def _network(context: RunContext, key: str, phase: PhaseConfig) -> dict[str, Tensor] | None:
    if phase.weights is None:
        return None
    with naming_key(f"{key}.{WEIGHTS}"):
        return read_network(Path(phase.weights), phase.model, context.image_size)


def _centres(context: RunContext, key: str, phase: PhaseConfig) -> GivenCentres | None:
    path, label_map, dim = phase.centres.weights, phase.centres.label_map, phase.model.embedding_dim
    if path is None or label_map is None:
        return None
    with naming_key(f"{key}.{CENTRES}"):
        rows = open_rows(Path(path))
        if rows.dim != dim:
            raise CheckpointError(f"{path}: rows must have {dim} numbers ({key}.model.embedding_dim), got {rows.dim}")
    with naming_key(f"{key}.centres.label_map"):
        row_of = rows_of_classes(label_map, rows.count, class_ids_of(Path(path)), context.source)
    given = GivenCentres(rows, torch.from_numpy(row_of).long(), f"{key}.{CENTRES}: {path}")
    given.own(shard_of(context.source.num_classes, context.world.rank, context.world.size))
    return given


def _check_places(context: RunContext, key: str, phase: PhaseConfig) -> None:
    own = context.folder.resolve()
    for name, path in ((WEIGHTS, phase.weights), (CENTRES, phase.centres.weights)):
        if path is not None and own in (Path(path).resolve(), *Path(path).resolve().parents):
            rule = "must not lie in the run's own folder, which is made anew: choose another run.name"
            raise ConfigError(f"{key}.{name}: {rule}, got {path}")


def _centres_digest(key: str, phase: PhaseConfig) -> str | None:
    """Hash the rows and the label map."""
    if phase.centres.weights is None:
        return None
    with naming_key(f"{key}.{CENTRES}"):
        parts = [rows_digest(Path(phase.centres.weights)), file_digest(phase.centres.label_map)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# ------------------------------------------------------------------------------------- a phase that has begun


def _has_begun(folder: Path) -> bool:
    return (folder / MODEL).exists() or bool(complete(folder / "checkpoints"))


def _facts_of_begun(context: RunContext, key: str, phase: PhaseConfig, folder: Path) -> dict[str, Any]:
    """Take the fingerprints of files that are there; of those that are gone, what the phase has recorded."""
    facts, kept = Start().facts, _recorded(folder)
    gone = [path for path in (phase.centres.weights, phase.centres.label_map) if path and _is_gone(path)]
    if phase.weights is not None:
        facts[WEIGHTS] = kept.get(WEIGHTS)
        if not _is_gone(phase.weights):
            facts[WEIGHTS] = state_digest(_network(context, key, phase) or {})
    if phase.centres.weights is not None:
        facts[CENTRES] = kept.get(CENTRES) if gone else _centres_digest(key, phase)
    return facts


def _is_gone(path: str) -> bool:
    return path not in ("identity", "names") and not Path(path).exists()


def _recorded(folder: Path) -> dict[str, Any]:
    """Read the identity that a phase has saved last; {} if nothing that can be read says it."""
    if (folder / MODEL).exists():
        said = json.loads(read_metadata(folder / MODEL).get("made_from", "{}"))
        return said if isinstance(said, dict) else {}
    for path in reversed(complete(folder / "checkpoints")):
        try:
            return json.loads(read_bytes(path / PROGRESS, read_manifest(path).files[PROGRESS]))
        except (CheckpointError, ValueError) as error:
            _log.info(f"{path}: passed over: {error}")
    return {}
