"""`launch/export.py`: the student or any network of ours as ONNX, checked against onnxruntime.

From a network file, a checkpoint, or a run folder (its finished student, else its newest checkpoint; `--checkpoint`).

Errors: one line on the error output and status 1, nothing written; wrong options, status 2.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from partialkd.checkpoint.network import checkpoint_network, chosen, is_checkpoint
from partialkd.commands.networks import add_choice
from partialkd.commands.results import add_json, show
from partialkd.config import ModelConfig
from partialkd.errors import PartialKDError
from partialkd.evaluate.card import compact, read_card
from partialkd.export.onnx import TOLERANCE, export
from partialkd.models.saved import read_description
from partialkd.models.weights import read_weights
from partialkd.teacher.network import fingerprint_of
from partialkd.world.command import CommandParser, say_error

EXAMPLES = (
    "partialkd export runs/quickstart/student/model.safetensors out/",
    "partialkd export runs/first out/ --checkpoint best --batch 1 --json export.json",
)

MOST_IMAGES = 4096  # in one batch: more is a mistyped number


def described(path: Path) -> tuple[dict[str, Tensor], ModelConfig, int]:
    """Weights, configuration and image size of a network file or a checkpoint."""
    if not is_checkpoint(path):
        config, image_size = read_description(path)
        return read_weights(path), config, image_size
    network, config, image_size = checkpoint_network(path)
    return network.state_dict(), config, image_size


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with the problem on stderr and nothing written."""
    parser = CommandParser(
        examples=EXAMPLES,
        description="Write a trained network as model.onnx and model.safetensors, if onnxruntime gives the same.",
    )
    parser.add_argument("model", type=Path, help="a run's model.safetensors, a checkpoint or a run folder")
    parser.add_argument("folder", type=Path, help="folder to write to")
    add_choice(parser)
    parser.add_argument("--card", type=Path, help="the network's threshold card, for the metadata of both files")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="largest difference by onnxruntime")
    parser.add_argument("--batch", type=int, metavar="N", help="model.onnx takes N images, not any number")
    add_json(parser)
    args = parser.parse_args(arguments)
    if args.batch is not None and not 1 <= args.batch <= MOST_IMAGES:
        parser.error(f"--batch must be in 1..{MOST_IMAGES}, got {args.batch}")
    try:
        state, config, image_size = described(chosen(args.model, args.checkpoint, args.phase))
        card = read_card(args.card, fingerprint_of(state, image_size)) if args.card else None
        thresholds = json.dumps(compact(card)) if card else None
        done = export(state, config, image_size, args.folder, args.tolerance, thresholds, args.batch)
    except (PartialKDError, OSError) as error:
        say_error(error)
        return 1
    facts = {"onnx": done.onnx, "safetensors": done.safetensors, "difference": done.difference, "batch": args.batch}
    show(args.json, facts, f"{done.onnx} and {done.safetensors}: largest difference {done.difference:.1e}")
    return 0
