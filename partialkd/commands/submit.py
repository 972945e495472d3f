"""Hand runs to Slurm: one, or an array of one for each CONFIG and seed (docs/cluster.md).

Every configuration is checked first, for the ranks that are asked for, and copied (run.folder/.submitted): a job trains
what was submitted, whatever becomes of CONFIG while it waits. Paths in it are relative to the folder in which this is
called, which all nodes must see. Options behind -- go to sbatch: -- --partition=gpu --account=faces.
Errors: one line on the error output and status 2, nothing submitted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from partialkd.cluster.slurm import (
    Request,
    Task,
    check_here,
    command_of,
    environment_of,
    parse_seeds,
    shown,
    submit,
    tasks_of,
)
from partialkd.commands.results import add_json, show
from partialkd.world.command import CommandParser
from partialkd.world.launch import configured

EXAMPLES = (
    "partialkd submit configs/webface42m_adadistill_32gpu.toml --nodes 4 --gpus 8 --time 2-00:00:00 run.name=first",
    "partialkd submit configs/ms1mv2_adadistill.toml --gpus 8 --seeds 0-4 --dry-run",
    "partialkd submit configs/methods/kd.toml configs/methods/rkd.toml --gpus 1 --seeds 0-2 -- --partition=gpu",
)
CPUS_PER_GPU = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, others = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = _parser()
    options = parser.parse_intermixed_args(own)
    overrides = [word for word in options.arguments if "=" in word]
    configs = [word for word in options.arguments if "=" not in word]
    if not configs:
        parser.error("at least one CONFIG is required")
    cpus = options.cpus or CPUS_PER_GPU * (options.gpus or 1)
    request = Request(
        options.nodes, options.gpus, options.ranks_per_node, cpus, options.time, options.logs, tuple(others)
    )
    environment = environment_of(request)

    def prepare() -> tuple[list[str], list[Task]]:
        tasks = tasks_of(configs, overrides, options.seeds or [], request.ranks, options.resume)
        check_here(request, environment)
        return command_of(request, tasks), tasks

    command, tasks = configured(prepare)
    names = [task.name for task in tasks]
    job = None if options.dry_run else configured(lambda: submit(command, environment, tasks))
    runs = f"{len(names)} run{'s' if len(names) > 1 else ''} ({', '.join(names)})"
    where = f"{request.nodes} node{'s' if request.nodes > 1 else ''}, {request.ranks} ranks each"
    copies = [str(task.copy) for task in tasks]
    lines = [shown(command, environment), f"would write {', '.join(copies)}"] if job is None else []
    lines.append(f"{'not submitted' if job is None else f'job {job}'}: {runs} on {where}")
    facts = {"job": job, "command": command, "environment": environment, "runs": names, "ranks": request.ranks}
    show(options.json, {**facts, "configurations": copies}, *lines)
    return 0


def _seeds(text: str) -> list[int]:
    try:
        return parse_seeds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    return 0 if text == "0" else _number(text)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(examples=EXAMPLES, description=__doc__)
    parser.add_argument("arguments", nargs="*", metavar="CONFIG section.key=value")
    parser.add_argument("--nodes", type=_number, default=1, help="of every run (default 1)")
    parser.add_argument(
        "--gpus", type=_count, default=8, help="of every node, a rank each; 0: ranks on the CPU (default 8)"
    )
    parser.add_argument("--ranks-per-node", type=_number, default=2, help="with --gpus 0 (default 2)")
    parser.add_argument("--cpus", type=_number, help=f"of every node (default {CPUS_PER_GPU} for each GPU)")
    parser.add_argument("--seeds", type=_seeds, help="an array, one run for each: 0-4 or 1,3,7")
    parser.add_argument(
        "--time", default="24:00:00", help="of one start; the job queues itself again (default %(default)s)"
    )
    parser.add_argument("--resume", metavar="auto|never|PATH", help="of the first start (default auto)")
    parser.add_argument(
        "--logs", type=Path, default=Path(), metavar="FOLDER", help="for slurm-<job>.log (default: here)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check all, show the command, submit nothing")
    add_json(parser)
    return parser
