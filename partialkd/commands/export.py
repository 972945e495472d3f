"""`launch/export.py`: the student or any network of ours as files for other runtimes, each checked in its own.

From a network file, a checkpoint, or a run folder (its finished student, else its newest checkpoint; `--checkpoint`).
Without `--to` model.onnx and model.safetensors, compared on random images; with it, each target on real ones.

Errors: one line on the error output and status 1, nothing written; wrong options and a missing model, status 2. Of
several targets those that hold are written; status 1 says that one did not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from prettytable import PrettyTable
from torch import Tensor

from partialkd.checkpoint.network import CONFIG, checkpoint_network, chosen, is_checkpoint
from partialkd.commands.networks import add_network, check_folder, check_there
from partialkd.commands.results import add_json, show
from partialkd.config import Config, ModelConfig
from partialkd.config.load import load_config
from partialkd.errors import ConfigError, PartialKDError
from partialkd.evaluate.card import compact, read_card
from partialkd.export.base import FAR, Graph, Target
from partialkd.export.edge import Outcome, export_targets
from partialkd.export.images import calibration_images
from partialkd.export.onnx import TOLERANCE, export, plain_network, to_onnx
from partialkd.export.parity import Judge
from partialkd.export.targets import TARGETS, chosen_targets
from partialkd.models.saved import describe, read_description
from partialkd.models.weights import read_weights
from partialkd.teacher.network import fingerprint_of
from partialkd.world.command import CommandParser, say_error

MOST_IMAGES = 4096  # in one batch: more is a mistyped number
EXAMPLES = (
    "partialkd export runs/quickstart/student/model.safetensors out/",
    "partialkd export runs/first out/ --checkpoint best --batch 1 --json export.json",
    "partialkd export runs/quickstart out/ --to onnx,fp16,int8,openvino",
    "partialkd export student.safetensors out/ --to int8 --set lfw.bin --calibrate faces/",
)


def described(path: Path) -> tuple[dict[str, Tensor], ModelConfig, int]:
    """Weights, configuration and image size of a network file or a checkpoint."""
    if not is_checkpoint(path):
        config, image_size = read_description(path)
        return read_weights(path), config, image_size
    network, config, image_size = checkpoint_network(path)
    return network.state_dict(), config, image_size


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with the problem on stderr."""
    parser = _parser()
    args = parser.parse_args(arguments)
    check_there(parser, args.model)
    check_folder(parser, args.folder)
    if args.batch is not None and not 1 <= args.batch <= MOST_IMAGES:
        parser.error(f"--batch must be in 1..{MOST_IMAGES}, got {args.batch}")
    try:
        targets = chosen_targets(args.to) if args.to is not None else []
    except ConfigError as error:
        parser.error(str(error))
    try:
        path = chosen(args.model, args.checkpoint, args.phase)
        return to_targets(args, path, targets) if targets else plainly(args, path)
    except (PartialKDError, OSError) as error:
        say_error(error)
        return 1


def plainly(args: argparse.Namespace, path: Path) -> int:
    """Write model.onnx and model.safetensors -> exit status."""
    state, config, image_size = described(path)
    done = export(
        state, config, image_size, args.folder, args.tolerance, thresholds_of(args, state, image_size), args.batch
    )
    facts = {"onnx": done.onnx, "safetensors": done.safetensors, "difference": done.difference, "batch": args.batch}
    show(args.json, facts, f"{done.onnx} and {done.safetensors}: largest difference {done.difference:.1e}")
    return 0


def thresholds_of(args: argparse.Namespace, state: dict[str, Tensor], image_size: int) -> str | None:
    """Read the card for the metadata of files, if one is given."""
    return json.dumps(compact(read_card(args.card, fingerprint_of(state, image_size)))) if args.card else None


def to_targets(args: argparse.Namespace, path: Path, targets: Sequence[Target]) -> int:
    """Write the targets that hold -> exit status."""
    state, config, image_size = described(path)
    thresholds = thresholds_of(args, state, image_size)
    for target in targets:
        target.check(image_size)
    run = run_config(path)
    named_set = args.set or set_of(run)
    wanted = any(target.calibrated for target in targets)
    pictures = calibration_images(run, args.calibrate, image_size) if wanted else None
    network = plain_network(state, config, image_size)
    judge = Judge(network, named_set, image_size)
    metadata = {**({} if thresholds is None else {"thresholds": thresholds}), **describe(config, image_size)}
    graph = Graph(to_onnx(network, metadata), network, image_size, args.batch, pictures)
    facts = {"fingerprint": fingerprint_of(state, image_size), "image_size": image_size}
    outcomes = export_targets(network, graph, targets, judge, args.folder, facts)
    found = {"targets": [one.facts() for one in outcomes]}
    show(args.json, found, *table_of(outcomes).get_string().splitlines())
    failed = [one for one in outcomes if one.problem is not None]
    for one in failed:
        say_error(ConfigError(f"{one.target.name}: not written: {one.problem}"))
    return 1 if failed else 0


def run_config(path: Path) -> Config | None:
    """Read the configuration of the run that a network lies in, if it lies in one."""
    for folder in path.resolve().parents[:3]:
        if (folder / CONFIG).is_file():
            return load_config(folder / CONFIG, [])
    return None


def set_of(run: Config | None) -> Path:
    """Return the first verification set of a run."""
    if run is None or not run.evaluation.sets:
        raise ConfigError("targets are checked on a verification set: name --set, a .bin or a folder of identities")
    return Path(run.evaluation.sets[0])


def table_of(outcomes: Sequence[Outcome]) -> PrettyTable:
    """Show a line for each target."""
    table = PrettyTable(["target", "precision", "least cosine", f"TAR % @ FAR {FAR:g}", "the network's", "file"])
    for one in outcomes:
        found = one.parity
        figures = ["-"] * 3
        if found is not None:
            rates = (f"{100 * rate:.2f}" for rate in (found.tar, found.tar_network))
            figures = [f"{found.cosine_least:.6f}", *rates]
        table.add_row(
            [one.target.name, one.target.precision, *figures, one.target.files[0] if not one.problem else "-"]
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        examples=EXAMPLES,
        description="Write a trained network as files for other runtimes, if they give the same embeddings there.",
    )
    add_network(parser)
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--to", metavar="TARGETS", help=f"with commas: {', '.join(TARGETS)}")
    parser.add_argument("--set", type=Path, metavar="SET", help="what targets are checked on: a .bin, or a folder of "
                        "identities (default: the run's first set)")  # fmt: skip
    parser.add_argument("--calibrate", type=Path, metavar="FOLDER", help="aligned images for int8 (default: the run's)")
    parser.add_argument("--card", type=Path, help="the network's threshold card, for the metadata of ONNX files")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="largest difference, without --to")
    parser.add_argument("--batch", type=int, metavar="N", help="files take N images, not any number")
    add_json(parser)
    return parser
