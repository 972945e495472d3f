"""`launch/embed.py`: a teacher cache of a configuration's data, to be named in teacher.cache.

It holds the teacher's embedding of every record, plain and mirrored, and the class means. A pass that was broken off
goes on with --resume, on any number of ranks.

Nothing else of the configuration is used. Finished: the cache is checked, block by block, and left as it is.
Errors: ConfigError naming key or option, TeacherError, DataError.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from partialkd.commands.results import add_json, write_facts
from partialkd.config import Config
from partialkd.config.load import load_config
from partialkd.context import RunContext
from partialkd.data.packing.prepare import prepare
from partialkd.data.sources.open import open_source
from partialkd.data.sources.source import Source
from partialkd.errors import ConfigError, Preempted
from partialkd.run.folder import owned
from partialkd.storage.atomic_files import refuse_existing
from partialkd.storage.manifest import MANIFEST
from partialkd.teacher.cache import TeacherCache, kept_before
from partialkd.teacher.embedded_records import check_writable, write_embedded
from partialkd.teacher.ensemble import open_teacher
from partialkd.teacher.supervision import facts_of, look_at, make_cache
from partialkd.world.command import CommandParser
from partialkd.world.launch import configured, launched
from partialkd.world.shard import shard_of
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

EXAMPLES = (
    "partialkd embed configs/ms1mv2_adadistill.toml --output caches/r50",
    "torchrun --nproc-per-node=8 --no-python partialkd embed configs/ms1mv2_adadistill.toml --output r50 --resume",
)

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: that of launch/train.py."""
    options = _parser().parse_intermixed_args(arguments)
    load = lambda: output_of(load_config(options.config, options.overrides), options.output, options.dtype)
    config, folder = configured(load)

    def body(world: World) -> None:
        found = embed(config, world, folder, options.resume, options.records)
        if options.json and world.is_main:
            write_facts(options.json, found)

    return launched(config.dist, body, ("--resume",))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(examples=EXAMPLES, description=__doc__)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--output", metavar="FOLDER", help="folder to make (default: teacher.cache)")
    parser.add_argument("--dtype", choices=["fp16", "bf16", "fp32"], help="(default: teacher.cache_dtype, else fp16)")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished cache")
    parser.add_argument(
        "--records", type=Path, metavar="FOLDER", help="also write .rec files that carry the embeddings"
    )
    add_json(parser, alone=False)
    return parser


def output_of(config: Config, output: str | None, dtype: str | None) -> tuple[Config, Path]:
    """The configuration with the options of the command line, and where the cache goes."""
    if config.teacher.source not in ("checkpoint", "onnx", "ensemble"):
        rule = 'must be "checkpoint", "onnx" or "ensemble" (what a run trains is in <run>/teacher/model.safetensors)'
        raise ConfigError(f'teacher.source {rule}, got "{config.teacher.source}"')
    if output is None and config.teacher.cache in (None, "auto"):
        raise ConfigError("--output is required where teacher.cache names no folder")
    if dtype is not None:
        teacher = config.teacher.model_copy(update={"cache_dtype": dtype})
        config = config.model_copy(update={"teacher": teacher})
    return config, Path(output or config.teacher.cache or "")


def embed(config: Config, world: World, folder: Path, resume: bool, records: Path | None) -> dict[str, Any]:
    """Collective. Make the cache in `folder`, or go on with it; and, where `records` is given, the records there.

    Returns what the cache says of itself, and where both are.
    """
    world.on_main(lambda: refuse_existing(records) if records else None)
    world.on_main(lambda: prepare(config.data))
    source = world.together(lambda: open_source(config.data))
    world.on_main(lambda: check_writable(source) if records else None)
    with StopSignals() as stop:
        size, batch = config.data.image_size, config.evaluate.batch
        network = world.together(lambda: open_teacher(config.teacher, size, world.device, batch))
        context = RunContext(config, world, source, folder, stop)
        look_at(network, context)
        if not world.on_main((folder / MANIFEST).exists):
            with owned(folder, world, stop, waiting_for="making it"):
                if not world.on_main((folder / MANIFEST).exists):  # nor made by the one that was waited for
                    make_cache(network, context, folder, "resume" if resume else "refuse")
        if stop.agreed(world):  # since the last batch was begun
            raise Preempted("stopped after the pass over the records")
    cache = world.together(lambda: kept_before(folder))
    dtype = config.teacher.cache_dtype or cache.facts.dtype
    accepts, dim = network.inputs, network.embedding_dim
    world.together(lambda: cache.check(facts_of(config, source, network.fingerprint, accepts, dim, dtype)))
    world.together(lambda: cache.verify(shard_of(len(cache.sums), world.rank, world.size)))
    if world.is_main:
        _log.info(f"{folder}: complete and undamaged: {cache.facts.records} records, {cache.facts.dtype}")
    if records is not None:
        world.on_main(lambda: _write_records(records, config, source, cache))
    return {"cache": folder, "with_embeddings": records, **asdict(cache.facts)}


def _write_records(out: Path, config: Config, source: Source, cache: TeacherCache) -> None:
    count = write_embedded(out, source, cache, config.data.image_size)
    _log.info(f"{out}: {count} records with {cache.dim} numbers in front of their class id")
