"""Record of the job that made a finished phase's network: in its file, and compared before the file is believed.

`<phase>/model.safetensors` carries in its metadata, under the checksum of the file, "made_from": the identity of its
phase (training/state.py) with fingerprints of the data and of the teacher, the seed, and its length. Files of earlier
versions do not: then the phase's newest checkpoint says what made it; if that is gone, too, the run's saved
configuration alone.
Call on one rank. Errors: `CheckpointError` naming the file, the keys and both values.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from partialkd import checkpoint
from partialkd.checkpoint.snapshot import PROGRESS
from partialkd.config import PhaseConfig
from partialkd.config.resume import FREE, covered, flat, identity_changes, phase_length
from partialkd.context import RunContext
from partialkd.errors import CheckpointError
from partialkd.models.saved import MODEL, read_description, read_metadata
from partialkd.training.state import identity

_log = logging.getLogger(__name__)
MADE_FROM = "made_from"  # in the metadata


def made_from(
    context: RunContext, name: str, phase: PhaseConfig, teacher: str | None, start: dict[str, Any] | None = None
) -> dict[str, str]:
    """Return the metadata of a finished phase's network.

    teacher: the fingerprint of what it learnt from, if of any. start: fingerprints of what it started from.
    """
    return {MADE_FROM: json.dumps(_facts(context, name, phase, teacher, start), sort_keys=True)}


def record_of(path: Path) -> dict[str, str]:
    """Read the record of a network's file, {} where an earlier version wrote it."""
    return {key: text for key, text in read_metadata(path).items() if key == MADE_FROM}


def _facts(
    context: RunContext, name: str, phase: PhaseConfig, teacher: str | None, start: dict[str, Any] | None
) -> dict[str, Any]:
    """Collect what makes a phase's network: the identity of its checkpoints, and how images and teacher are read."""
    sections = context.config.model_dump(mode="json", include={"data": True, "teacher": {"centres", "cache_dtype"}})
    if teacher is None:
        del sections["teacher"]
    settings = {key: value for key, value in flat(sections).items() if not covered(key, FREE)}
    same = identity(name, phase, context.config, context.source.fingerprint, teacher, start)
    return {**same, **phase_length(phase), "settings": settings}


def check_finished(
    context: RunContext,
    name: str,
    phase: PhaseConfig,
    teacher: str | None = None,
    start: dict[str, Any] | None = None,
) -> bool:
    """Return whether the phase is finished; CheckpointError if another job did it.

    teacher, start: None if not known yet.
    """
    path = context.folder / name / MODEL
    if not path.exists():
        return False
    said, wanted = _said(path), _facts(context, name, phase, teacher, start)
    if said.get("teacher") is None or teacher is None:
        del wanted["teacher"]
    config, image_size = read_description(path)
    changes = identity_changes({**said, "image_size": image_size}, {**wanted, "image_size": context.image_size})
    asked = phase.model
    if (config.name, config.embedding_dim) != (asked.name, asked.embedding_dim):
        changes["model"] = (f"{config.name}, {config.embedding_dim}", f"{asked.name}, {asked.embedding_dim}")
    if changes:
        named = {key.removeprefix("settings."): values for key, values in changes.items()}
        listed = "; ".join(f"{key} = {was!r}, this run has {now!r}" for key, (was, now) in sorted(named.items()))
        rule = "it is not gone on with: choose another run.name, or move its folder away"
        raise CheckpointError(f"{path}: was made by another job, with {listed}; {rule}")
    return True


def _said(path: Path) -> dict[str, Any]:
    """Read the identity that made the file, as far as it or the newest checkpoint beside it says."""
    text: str | bytes | None = read_metadata(path).get(MADE_FROM)
    newest = checkpoint.newest(path.parent / "checkpoints") if text is None else None
    if newest is not None:
        text = (newest / PROGRESS).read_bytes()
    if text is None:
        _log.warning(f"{path}: does not say what made it (an earlier version wrote it); {path.parents[1]} is believed")
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{newest or path}: damaged: {error}") from error
    return found if isinstance(found, dict) else {}
