"""`launch/train.py`: train what a configuration describes, on the ranks that torchrun started.

Without CONFIG: configs/quickstart.toml. Exit status of a rank: 0 done; 1 failed; 2 wrong configuration or files, which
another start would meet again; 75 asked to stop by a signal (SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1) and saved; 130
interrupted before. torchrun: 1.
--json FILE: what result.json of the run holds, at its end; with --dry-run what was found to be fit.
Ranks that torchrun itself starts again (--max-restarts) go on with the run, whatever --resume says.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from partialkd.commands.results import add_json, write_facts
from partialkd.config.load import load_config
from partialkd.errors import ConfigError
from partialkd.run.begin import dry_run
from partialkd.run.job import run_job
from partialkd.world.command import CommandParser
from partialkd.world.launch import configured, launched
from partialkd.world.messages import output
from partialkd.world.world import World

EXAMPLES = (
    "partialkd train configs/quickstart.toml run.name=first --resume auto",
    "torchrun --nproc-per-node=8 --no-python partialkd train configs/ms1mv2_adadistill.toml data.path=/data/ms1mv2",
    "partialkd train configs/quickstart.toml --check",
)

DEFAULT = Path(__file__).parents[2] / "configs" / "quickstart.toml"
RANKS_WITHOUT_GPU = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    overrides = [argument for argument in options.arguments if "=" in argument]
    paths = [argument for argument in options.arguments if "=" not in argument]
    if len(paths) > 1:
        parser.error(f"one CONFIG, got {paths}")
    if options.log_level:
        overrides.append(f"run.log_level={options.log_level}")
    config = configured(lambda: load_config(paths[0] if paths else DEFAULT, overrides))
    if options.check:
        output(configured(_ranks_here))
        return 0
    work, goes_on = (dry_run, ()) if options.dry_run else (run_job, ("--resume", "auto"))

    def job(world: World) -> None:
        found = work(config, world, options.resume, options.extend)
        if options.json and world.is_main:
            write_facts(options.json, found)

    return launched(config.dist, job, goes_on)


def _ranks_here() -> int:
    """How many ranks this machine runs: as NPROC says, else one a GPU, else two."""
    asked = os.environ.get("NPROC") or str(torch.cuda.device_count() or RANKS_WITHOUT_GPU)
    if not asked.isdecimal() or int(asked) < 1:
        raise ConfigError(f"NPROC: must be a whole number of at least 1, got {asked!r}")
    return int(asked)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(examples=EXAMPLES, description=__doc__)
    parser.add_argument("arguments", nargs="*", metavar="CONFIG section.key=value")
    parser.add_argument("--resume", default="never", metavar="auto|never|PATH")
    parser.add_argument(
        "--extend", action="store_true", help="with --resume: epochs and max_steps may be more than they were"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="all that a run does before its first step: data, networks, teacher and its accuracy, weights; then end",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only look at the configuration and print how many ranks launch/local.sh starts on this machine",
    )
    add_json(parser, alone=False)
    return parser
