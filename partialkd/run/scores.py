"""Scores of networks on the evaluation sets: the teacher's before anything is learnt from it, the others' at the end.

A teacher of wrong weights, or fed with another mean, standard deviation or colour order than it was trained with, shows
in its accuracy at once, and costs the whole training otherwise. One whose accuracy on the first set is below
`LEAST_ACCURACY` is refused until `teacher.accept = true` says that it is meant; one that this run has trained itself,
or with which the student has begun, is only warned of. The pixels of aligned photographs, compared as they are, reach
0.62 on LFW, and so do random networks; published teachers are above 0.9 on every usual set.

The teacher's scores are kept in the run's folder with what they are scores of, so that a resumed run does not compute
them again: `teacher_scores.json`, {"of": ..., "scores": {set: scores}, "crc32"}. A file that is damaged or of something
else is not used.
Errors: `TeacherError` naming the file, `DataError` as evaluate/verification.py says.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from partialkd.context import RunContext
from partialkd.data.images.decode import DECODING
from partialkd.errors import CheckpointError, TeacherError
from partialkd.evaluate.kept_pairs import write_pairs
from partialkd.evaluate.pairs import PairScores
from partialkd.evaluate.verification import ScoredPairs, pairs_of_sets
from partialkd.storage.atomic_files import write_bytes
from partialkd.storage.manifest import manifest_bytes, read_manifest
from partialkd.teacher.supervision import Teaching, open_network

Scores = dict[str, PairScores]  # by set
Pairs = dict[str, ScoredPairs]  # likewise
_log = logging.getLogger(__name__)
KEPT = "teacher_scores.json"
LEAST_ACCURACY = 0.7  # on the first set; chance is 0.5


@torch.no_grad()
def score(
    context: RunContext, who: str, embed: Callable[..., torch.Tensor], keep: Callable[[Pairs], None] | None = None
) -> Scores:
    """Score a network on all sets; collective. keep: takes the pairs, instead of the run's folder."""
    config, data, world = context.config.evaluation, context.config.data, context.world
    embed = context.stop.listen(world).guarding(embed, f"evaluating the {who}")
    pairs = pairs_of_sets(embed, config, data.image_size, data.resize, world)
    scores = {name: one.scores(config) for name, one in pairs.items()}
    if keep is not None:
        keep(pairs)
    else:
        keep_pairs(context, who, pairs)
    return scores


def keep_pairs(context: RunContext, who: str, pairs: Pairs) -> None:
    """Write what a network made of each pair into the run's folder; collective."""
    context.world.on_main(lambda: write_pairs(context.folder, who, pairs))


def scored_before(context: RunContext, teacher: str) -> Scores | None:
    """Read the kept scores of the teacher of this fingerprint on these sets, if there are any; collective."""
    return context.world.on_main(lambda: _read(context.folder, _facts(context, teacher)))


def keep_scores(context: RunContext, teacher: str, scores: Scores) -> None:
    """Write the scores of the teacher of this fingerprint into the run's folder."""

    def write() -> None:
        facts = {"of": _facts(context, teacher), "scores": {name: asdict(one) for name, one in scores.items()}}
        write_bytes(context.folder / KEPT, manifest_bytes(facts))

    context.world.on_main(write)


def score_trained(context: RunContext, teaching: Teaching, resumed: bool) -> Scores:
    """Score the teacher that this run has trained, unless its scores were kept; collective."""
    if not context.config.evaluate.sets:
        return {}
    scores = scored_before(context, teaching.fingerprint) if resumed else None
    if scores is None:
        scores = score(context, "teacher", (teaching.network or open_network(context)).embed)
        keep_scores(context, teaching.fingerprint, scores)
    judge_teacher(context, scores, strict=False)
    return scores


def judge_teacher(context: RunContext, scores: Scores, strict: bool, path: str | None = None) -> None:
    """Say how good the teacher is; TeacherError if it is too bad, not accepted as it is, and judged strictly.

    path: of one of several teachers.
    """
    config, world = context.config.teacher, context.world
    teacher = f"{path or config.path}: this teacher"
    if path is None and config.source in ("train", "ensemble"):
        teacher = "the teacher that this run has trained" if config.source == "train" else "the ensemble of teachers"
    if not scores:
        if world.is_main:
            _log.info(f"{teacher} could not be judged before training: {_why_not(context)}")
        return
    (name, first), *_ = scores.items()
    if world.is_main:
        said = ", ".join(f"{100 * one.accuracy:.2f} % on {set_name}" for set_name, one in scores.items())
        _log.info(f"{teacher} has an accuracy of {said}")
    if first.accuracy >= LEAST_ACCURACY:
        return
    found, asked = f"{100 * first.accuracy:.1f} %", f"{100 * LEAST_ACCURACY:.0f} %"
    rule = f"is little better than guessing: {found} on {name}, at least {asked} asked"
    if strict and not config.accept:
        look = "look at its weights and at teacher.input (size, mean, std, colour); teacher.accept = true takes it so"
        raise TeacherError(f"{teacher} {rule}; {look}")
    if world.is_main:
        _log.warning(f"{teacher} {rule}")


def _why_not(context: RunContext) -> str:
    if context.config.teacher.embeddings_alone:
        return "its embeddings of the training images are all there is, and there is no network to score"
    return "evaluate.sets names no verification set"


def _facts(context: RunContext, teacher: str) -> dict[str, Any]:
    """Collect what kept scores must be of."""
    config, data = context.config.evaluation, context.config.data
    sets = {Path(path).stem: _digest(Path(path)) for path in config.sets}
    protocol = {"folds": config.folds, "fars": list(config.fars), "flip": config.flip}
    images = {"decoding": DECODING, "image_size": data.image_size, "resize": data.resize}
    return {"teacher": teacher, "sets": sets, **protocol, **images}


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(folder: Path, facts: dict[str, Any]) -> Scores | None:
    if not (folder / KEPT).exists():
        return None
    try:
        found = read_manifest(folder, CheckpointError, required=True, name=KEPT)
        return {name: PairScores(**one) for name, one in found["scores"].items()} if found["of"] == facts else None
    except (CheckpointError, KeyError, TypeError, AttributeError) as error:
        _log.info(f"{folder / KEPT}: not used, the teacher is scored again: {error}")
        return None
