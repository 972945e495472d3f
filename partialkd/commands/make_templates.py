"""Run `launch/make_templates.py`: a small set of templates in the form of IJB-C, made of aligned faces.

Errors: one line on the error output and status 1, nothing written; wrong options, status 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from partialkd.commands.results import add_json, show
from partialkd.errors import PartialKDError
from partialkd.evaluate.made_templates import LEAST, make_templates
from partialkd.world.command import CommandParser, say_error

EXAMPLES = (
    "partialkd make_templates aligned/ data/templates",
    "partialkd make_templates aligned.tar data/templates --identities 20 --seed 1 --json -",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the set as the command line says; the exit status."""
    parser = CommandParser(examples=EXAMPLES, description="A small set in the form of IJB-C.")
    parser.add_argument("images", type=Path, help="aligned faces of 112 pixels, <identity>/<image>: a folder or .tar")
    parser.add_argument("out", type=Path, help="folder to make")
    least = f"how many at most (default %(default)s), of those with {LEAST} images"
    parser.add_argument("--identities", type=int, default=50, help=least)
    parser.add_argument("--seed", type=int, default=0)
    add_json(parser)
    options = parser.parse_args(arguments)
    try:
        made = make_templates(options.images, options.out, options.identities, options.seed)
    except (PartialKDError, OSError) as error:
        say_error(error)
        return 1
    said = ", ".join(f"{count} {what}" for what, count in made.items())
    show(options.json, {"folder": options.out, **made}, f"{options.out}: {said}")
    return 0
