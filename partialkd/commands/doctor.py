"""Is this machine fit for a run, and a CONFIG for this machine; under torchrun, every rank, host and link between them.

Looks at versions, driver, compilers, shared memory, open files, clocks, interface, the speed of folders and links; with
CONFIG also at everything that `train --dry-run` does: data, labels, sets, the teacher's accuracy; and planned memory.
Every finding is good, doubtful or bad, and says how to mend it. Nothing is trained, no run's folder is touched; data
that the configuration makes are made.
Exit status: 0 where nothing is bad, 1 otherwise; 2: wrong options or a wrong configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from partialkd.cluster.doctor import examine
from partialkd.cluster.findings import VERDICTS, Finding, lines_of, worst
from partialkd.commands.results import add_json, show
from partialkd.config import Config, DistConfig
from partialkd.config.load import load_config
from partialkd.errors import PartialKDError
from partialkd.world.command import CommandParser
from partialkd.world.launch import configured, launched
from partialkd.world.world import World

EXAMPLES = (
    "partialkd doctor",
    "partialkd doctor configs/ms1mv2_adadistill.toml data.path=/data/ms1mv2 --json doctor.json",
    "torchrun --nproc-per-node=8 --no-python partialkd doctor configs/ms1mv2_adadistill.toml",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = CommandParser(examples=EXAMPLES, description=__doc__)
    parser.add_argument("arguments", nargs="*", metavar="CONFIG section.key=value")
    add_json(parser)
    options = parser.parse_intermixed_args(arguments)
    overrides = [word for word in options.arguments if "=" in word]
    paths = [word for word in options.arguments if "=" not in word]
    if len(paths) > 1 or (overrides and not paths):
        parser.error(f"one CONFIG, got {paths}")
    config = configured(lambda: load_config(paths[0], overrides)) if paths else None
    return launched(config.dist if config else DistConfig(), lambda world: _examined(config, world, options.json))


def _examined(config: Config | None, world: World, json_to: str | None) -> None:
    found = examine(config, world)
    if world.is_main:
        facts = {"verdict": worst(found), "ranks": world.size, "findings": [asdict(one) for one in found]}
        show(json_to, facts, *lines_of(found), _verdict(found))
    world.barrier()
    if worst(found) == "bad":
        raise NotFit(f"not fit for a run: {_verdict(found)}")


class NotFit(PartialKDError):
    """Something that was looked at would end a run."""


def _verdict(found: Sequence[Finding]) -> str:
    return ", ".join(f"{sum(one.verdict == verdict for one in found)} {verdict}" for verdict in VERDICTS)
