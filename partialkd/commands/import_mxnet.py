"""`launch/import_mxnet.py`: an MXNet teacher as a network of this project, and its classifier's rows.

Errors: one line on the error output and status 1, nothing written; wrong options, status 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from partialkd.commands.results import add_json, show
from partialkd.errors import PartialKDError
from partialkd.models.mxnet.checkpoint import CLASSIFIER_FILE, MODEL_FILE, import_checkpoint
from partialkd.world.command import CommandParser, say_error

EXAMPLES = (
    "partialkd import_mxnet model-symbol.json model-0000.params teachers/r100",
    "partialkd import_mxnet model-symbol.json model-0000.params teachers/r100 --image-size 112 --json -",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with the problem on stderr and nothing written."""
    parser = CommandParser(
        examples=EXAMPLES,
        description="An MXNet teacher as a network of this project, and its rows for teacher.classifier.",
    )
    parser.add_argument("symbol", type=Path, help="model-symbol.json")
    parser.add_argument("params", type=Path, help="model-0000.params")
    parser.add_argument("folder", type=Path, help=f"folder for {MODEL_FILE} and {CLASSIFIER_FILE}")
    parser.add_argument("--image-size", type=int, help="pixels a side (default: the largest that fits, mostly 112)")
    add_json(parser)
    args = parser.parse_args(arguments)
    try:
        found = import_checkpoint(args.symbol, args.params, args.folder, args.image_size)
    except (PartialKDError, OSError) as error:
        say_error(error)
        return 1
    classes = len(found.classifier) if found.classifier is not None else 0
    lines = [f"{args.folder / MODEL_FILE}: {found.config.name}, images of {found.image_size} pixels"]
    if classes:
        lines.append(f"{args.folder / CLASSIFIER_FILE}: {classes} classes of {found.config.embedding_dim} numbers")
    if found.unused:
        lines.append(f"not part of either: {', '.join(found.unused)}")
    network = found.config.model_dump(mode="json")
    facts = {"network": network, "image_size": found.image_size, "classes": classes, "unused": list(found.unused)}
    show(args.json, {"folder": args.folder, **facts}, *lines)
    return 0
