"""Run `launch/pack.py`: pack photographs, or data of other formats, as what training reads; or take a folder apart.

Errors: every problem on the error output and status 1, nothing written; wrong options, status 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from partialkd.commands.results import add_json, show
from partialkd.config.data import PartSource
from partialkd.data.packing.image_list import Gaps
from partialkd.data.packing.pack import PackOptions, pack, unpack
from partialkd.errors import PartialKDError
from partialkd.world.command import CommandParser, say_error

EXAMPLES = (
    "partialkd pack pack photos/ data/mine",
    "partialkd pack pack hsface.lmdb data/hsface --from lmdb --json -",
    "partialkd pack unpack data/mine photos_again/",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack or unpack as the command line says; the exit status."""
    args = _parser().parse_args(arguments)
    try:
        facts, line = _unpack(args) if args.direction == "unpack" else _pack(args)
        show(args.json, facts, line)
    except (PartialKDError, OSError) as error:
        say_error(error)
        return 1
    return 0


def _pack(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    gaps: Gaps = "renumber" if args.renumber else "keep" if args.keep_gaps else "refuse"
    options = PackOptions(
        size=args.size, quality=args.quality, skip_unreadable=args.skip_unreadable, gaps=gaps, workers=args.workers,
        to=args.to, shard_images=args.shard_images,
    )  # fmt: skip
    count, skipped = pack(args.source, args.out, options, args.form)
    facts = {"folder": args.out, "images": count, "skipped": len(skipped)}
    return facts, f"{count} images packed into {args.out}, {len(skipped)} skipped"


def _unpack(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    count = unpack(args.source, args.out, args.workers)
    return {"folder": args.out, "images": count}, f"{count} images unpacked into {args.out}"


def _parser() -> argparse.ArgumentParser:
    description = "Pack images as the train.rec, train.idx and property that training reads, or unpack such a folder."
    parser = CommandParser(examples=EXAMPLES, description=description)
    parser.add_argument("direction", choices=["pack", "unpack"])
    source = "folder <identity>/<image>, list (a line path<TAB>class id per image), or what --from says"
    parser.add_argument("source", type=Path, help=source)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--from", dest="form", choices=get_args(PartSource), help="format of the source (docs/data.md)")
    parser.add_argument("--to", choices=["rec", "webdataset"], default="rec", help="format to write (default rec)")
    parser.add_argument("--shard-images", type=int, default=PackOptions().shard_images, help="webdataset: in each")
    parser.add_argument("--size", type=int, help="resize to this many pixels per side")
    parser.add_argument("--quality", type=int, help="re-encode as JPEG of this quality, 1..100")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out and list in OUT/skipped.txt")
    gaps = parser.add_mutually_exclusive_group()
    gaps.add_argument("--renumber", action="store_true", help="number the class ids that have images from 0 on")
    gaps.add_argument("--keep-gaps", action="store_true", help="keep class ids that have no image between others")
    parser.add_argument("--workers", type=int, default=PackOptions().workers, help="threads")
    add_json(parser)
    return parser
