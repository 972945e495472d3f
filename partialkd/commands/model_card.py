"""`launch/model_card.py`: a run's network as a folder to publish, with its card (Hugging Face layout).

Errors: one line on the error output and status 1, nothing written; wrong options, status 2.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from partialkd.checkpoint.network import chosen
from partialkd.commands.export import described, run_config
from partialkd.commands.networks import add_network, check_folder, check_there
from partialkd.commands.results import add_json, show
from partialkd.errors import CheckpointError, PartialKDError
from partialkd.evaluate.card import read_card
from partialkd.export.model_card import LICENCES, Facts, write_model_folder
from partialkd.storage.atomic_files import refuse_existing
from partialkd.teacher.network import fingerprint_of
from partialkd.world.command import CommandParser, say_error

RESULT = "result.json"
EXAMPLES = (
    "partialkd model_card runs/quickstart published/",
    "partialkd model_card runs/first published/ --card card.json --exported out/ --licence-weights cc-by-nc-4.0",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with the problem on stderr and nothing written."""
    parser = _parser()
    args = parser.parse_args(arguments)
    check_there(parser, args.model)
    check_folder(parser, args.folder)
    try:
        refuse_existing(args.folder)
        path = chosen(args.model, args.checkpoint, args.phase)
        state, model, image_size = described(path)
        fingerprint = fingerprint_of(state, image_size)
        card = read_card(args.card, fingerprint) if args.card else None
        given = {what: getattr(args, _option(what)) for what in LICENCES}
        licences = {what: licence for what, licence in given.items() if licence}
        run, result = run_config(path), _result(path)
        facts = Facts(state, model, image_size, fingerprint, run, result, args.phase, card, args.exported, licences)
        write_model_folder(args.folder, facts)
    except (PartialKDError, OSError) as error:
        say_error(error)
        return 1
    opened = f"partialkd.load({str(args.folder)!r}) opens it"
    found = {"folder": args.folder, "fingerprint": fingerprint, "licences": licences}
    show(args.json, found, f"{args.folder}: README.md, config.json, model.safetensors; {opened}")
    return 0


def _result(path: Path) -> dict[str, Any] | None:
    for folder in path.resolve().parents[:3]:
        if (folder / RESULT).is_file():
            try:
                return dict(json.loads((folder / RESULT).read_text(encoding="utf-8")))
            except ValueError as error:
                raise CheckpointError(f"{folder / RESULT}: damaged: {error}") from error
    return None


def _option(what: str) -> str:
    return f"licence_{what.replace(' ', '_')}"


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        examples=EXAMPLES,
        description="Write a run's network as a folder to publish: README.md, config.json, model.safetensors.",
    )
    add_network(parser)
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument("--card", type=Path, help="the network's threshold card (evaluate.py --card)")
    parser.add_argument(
        "--exported", type=Path, metavar="OUT", help="what export.py --to has written of it: goes along"
    )
    for what in LICENCES:
        option = f"--{_option(what).replace('_', '-')}"
        parser.add_argument(option, metavar="NAME", help=f"licence of the {what}, for the card")
    add_json(parser)
    return parser
