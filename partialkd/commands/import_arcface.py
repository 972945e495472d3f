"""What InsightFace's arcface_torch leaves, taken over: its configurations as ours, its runs as checkpoints of ours.

config: configs/NAME.py is read as data (nothing in it is run), with base.py beside it, and written as TOML.
run: checkpoint_gpu_*.pt of a work folder (save_all_states) become a checkpoint of the run of CONFIG: network, centres
and the optimiser's memory of both; `train CONFIG --resume auto` goes on from there, on any number of ranks.
Errors: one line on the error output, nothing written; status 2 for options and configurations, 1 or 2 for files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from partialkd.commands.results import add_json, show
from partialkd.config import Config
from partialkd.config.arcface_torch import as_ours, read_settings, unused
from partialkd.config.load import load_config, parse_config
from partialkd.errors import ConfigError
from partialkd.run.arcface_torch import take_over
from partialkd.storage.atomic_files import write_text
from partialkd.world.command import CommandParser
from partialkd.world.launch import configured, launched
from partialkd.world.world import World

EXAMPLES = (
    "partialkd import_arcface config arcface_torch/configs/ms1mv3_r50.py ms1mv3_r50.toml --gpus 8",
    "partialkd import_arcface run work_dirs/ms1mv3_r50 ms1mv3_r50.toml data.path=/data/ms1m-retinaface-t1",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "config":
        return configured(lambda: _configuration(options))
    config = configured(lambda: load_config(options.config, options.overrides))
    return launched(config.dist, lambda world: _run(config, world, options))


def _configuration(options: argparse.Namespace) -> int:
    settings = read_settings(options.file)
    tree = as_ours(settings, options.file.stem, options.gpus, options.power)
    parse_config(tree, str(options.file))
    if options.out.exists():
        raise ConfigError(f"{options.out}: is there already")
    header = f"# partialkd train {options.out.name}", f"# Of {options.file.name}, on {options.gpus} GPUs.", "", ""
    write_text(options.out, "\n".join(header) + tomli_w.dumps(tree))
    left = unused(settings)
    lines = [f"{options.out}: {tree['student']['model']['name']}, {tree['student']['epochs']} epochs"]
    lines += [f"without a counterpart, left out: {', '.join(left)}"] if left else []
    show(options.json, {"file": options.out, "unused": left, "configuration": tree}, *lines)
    return 0


def _run(config: Config, world: World, options: argparse.Namespace) -> None:
    path = take_over(config, world, options.folder)
    if world.is_main:
        again = f"to go on: partialkd train {options.config} --resume auto"
        show(options.json, {"checkpoint": path, "run": config.run.name}, f"{path}: taken over", again)


def _gpus(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _power(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(examples=EXAMPLES, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    config = commands.add_parser("config", help="a configuration as TOML")
    config.add_argument("file", type=Path, help="configs/NAME.py")
    config.add_argument("out", type=Path, help=".toml to write")
    config.add_argument(
        "--gpus", type=_gpus, default=8, help="how many it ran on: its batch is that of one (default 8)"
    )
    power = "of its polynomial schedule (default 1; until 2022: 2)"
    config.add_argument("--power", type=_power, default=1.0, help=power)
    run = commands.add_parser("run", help="checkpoint_gpu_*.pt as a checkpoint of a run")
    run.add_argument("folder", type=Path, help="the work folder with the files of all GPUs")
    run.add_argument("config", metavar="CONFIG")
    run.add_argument("overrides", nargs="*", metavar="section.key=value")
    for one in (config, run):
        add_json(one)
    return parser
