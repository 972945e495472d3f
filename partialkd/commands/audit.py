"""`launch/audit.py`: suspicions about a configuration's data, from the teacher's embeddings that launch/embed.py kept.

What is suspected, and how: partialkd/report/audit.py; what is written: audit_files.py. With `evaluate.sets` the teacher
embeds their images as well, and identities of the training data that are evaluated are found.
Errors: ConfigError naming key or option, TeacherError, DataError; nothing is written then.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from partialkd.commands.results import add_json, show
from partialkd.config import Config
from partialkd.config.load import load_config
from partialkd.data.formats.verification_bin import read_bin
from partialkd.data.images.decode import Wanted, decode
from partialkd.data.packing.prepare import prepare
from partialkd.data.sources.open import open_source
from partialkd.data.sources.source import Source
from partialkd.errors import ConfigError
from partialkd.evaluate.embedding import Images, embed_images
from partialkd.evaluate.intervals import identities_of_pairs
from partialkd.report.audit import KINDS, Audit, unit, with_mirrored
from partialkd.report.audit_files import Person, write_audit
from partialkd.storage.atomic_files import refuse_existing
from partialkd.teacher.cache import TeacherCache, kept_before
from partialkd.teacher.ensemble import open_teacher
from partialkd.teacher.supervision import facts_of
from partialkd.world.command import CommandParser
from partialkd.world.launch import configured, launched
from partialkd.world.world import World

EXAMPLES = (
    "partialkd audit configs/ms1mv2_adadistill.toml --cache caches/r50 --out audit",
    "partialkd audit mine.toml data.path=/data/mine --cache caches/r50 --out audit --duplicate 0.98 --json audit.json",
)

BLOCK = 1 << 16  # rows read at a time


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: that of launch/train.py."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if not -1 <= options.duplicate <= 1:
        parser.error(f"--duplicate must be a cosine, in [-1, 1], got {options.duplicate:g}")
    config = configured(lambda: _checked(load_config(options.config, options.overrides), options.cache))
    return launched(config.dist, lambda world: audit(config, world, options.out, options.duplicate, options.json))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(examples=EXAMPLES, description=__doc__)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument("--cache", metavar="FOLDER", help="what launch/embed.py made (default: teacher.cache)")
    parser.add_argument("--duplicate", type=float, default=0.99, help="cosine above which images are one (0.99)")
    add_json(parser)
    return parser


def _checked(config: Config, cache: str | None) -> Config:
    cache = cache or config.teacher.cache
    if config.teacher.source not in ("checkpoint", "onnx", "ensemble"):
        raise ConfigError(f'teacher.source must be "checkpoint", "onnx" or "ensemble", got "{config.teacher.source}"')
    if cache in (None, "auto"):
        raise ConfigError("--cache is required where teacher.cache names no folder (launch/embed.py makes one)")
    return config.model_copy(update={"teacher": config.teacher.model_copy(update={"cache": cache})})


def audit(config: Config, world: World, out: Path, duplicate: float, json_to: str | None = None) -> None:
    """Collective: all ranks embed the images of evaluation sets, rank 0 does the rest."""
    world.on_main(lambda: refuse_existing(out))
    world.on_main(lambda: prepare(config.data))
    source = world.together(lambda: open_source(config.data))
    if config.data.filtered:
        rule = "an audit is of one data set as it is: without data.parts, lists of what is left out, map, min_images"
        raise ConfigError(f"data: {rule}")
    size = config.data.image_size
    teacher = world.together(lambda: open_teacher(config.teacher, size, world.device, config.evaluate.batch))
    cache = world.together(lambda: kept_before(Path(config.teacher.cache or "")))
    dtype = config.teacher.cache_dtype or cache.facts.dtype
    facts = facts_of(config, source, teacher.fingerprint, teacher.inputs, teacher.embedding_dim, dtype)
    world.together(lambda: cache.check(facts))
    people = [_Evaluated(path, config) for path in map(Path, config.evaluation.sets)]
    means = [one.means(embed_images(teacher.embed, one.images, size, config.evaluate.batch, world)) for one in people]

    def look() -> None:
        found = Audit(_rows(cache), source.labels(), source.num_classes, world.device)
        findings = found.findings(duplicate)
        if means:
            findings += found.evaluated(np.concatenate(means))
        write_audit(out, source, findings, _person(people))
        counts = {kind: sum(one.kind == kind for one in findings) for kind in KINDS}
        facts = {"folder": out, "identities": source.num_classes, "images": len(source), "found": counts}
        show(json_to, facts, *_summary(counts, out, source))

    world.on_main(look)


def _rows(cache: TeacherCache) -> np.ndarray:
    """Read the unit embeddings (n, D) float32, each of an image with that of its mirror image."""
    rows = np.empty((cache.facts.records, cache.dim), dtype=np.float32)
    for start in range(0, len(rows), BLOCK):
        part = torch.arange(start, min(start + BLOCK, len(rows)))
        sides = [cache.rows(part, torch.full((len(part),), side)).numpy() for side in (False, True)]
        rows[start : start + BLOCK] = with_mirrored(*sides)
    return rows


class _Evaluated:
    """The people of one verification set, told apart by its genuine pairs."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.found = path, read_bin(path)
        distinct: dict[bytes, int] = {}
        places = np.array([distinct.setdefault(image, len(distinct)) for image in self.found.images])
        self.encoded = list(distinct)
        pairs = identities_of_pairs(places[0::2], places[1::2], self.found.same)
        who = np.zeros(len(distinct), dtype=np.int64)
        who[places[0::2]], who[places[1::2]] = pairs.first, pairs.second
        self.people, self.who = np.unique(who, return_inverse=True)
        self.first = np.unique(self.who, return_index=True)[1]
        wanted = Wanted(config.data.image_size, config.data.resize)
        name = lambda image: f"{path}: distinct image {image}"
        pixels = lambda image: decode(self.encoded[image], name(image), wanted=wanted)
        self.images = Images(len(self.encoded), pixels, name, f"embedding {path.stem}")

    def means(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings (2, u, D) of the distinct images -> unit rows of the people."""
        sums = np.zeros((len(self.people), embeddings.shape[2]))
        np.add.at(sums, self.who, with_mirrored(*embeddings))
        return unit(sums).astype(np.float32)


def _person(people: Sequence[_Evaluated]) -> Person:
    ends = np.cumsum([0, *(len(one.people) for one in people)])

    def person(number: int) -> tuple[str, bytes]:
        at = int(np.searchsorted(ends, number, side="right")) - 1
        own = int(people[at].first[number - ends[at]])
        return f"{people[at].path.stem}: person {number - ends[at]}", people[at].encoded[own]

    return person


def _summary(counts: dict[str, int], out: Path, source: Source) -> list[str]:
    said = ", ".join(f"{count} x {kind}" for kind, count in counts.items() if count) or "nothing"
    return [f"{source.num_classes} identities, {len(source)} images: {said}", f"look through {out / 'index.html'}"]
