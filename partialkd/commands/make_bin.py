"""Run `launch/make_bin.py`: build a verification set (.bin) from aligned images and a list of pairs, or take one apart.

Errors: one line on the error output and status 1, nothing written; wrong options, status 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from partialkd.commands.results import add_json, show
from partialkd.data.formats.pair_lists import FORMS, LFW_NAMES, read_pair_list
from partialkd.data.packing.verification_sets import PAIRS, build_bin, build_from_pixels, extract_bin
from partialkd.errors import PartialKDError
from partialkd.world.command import CommandParser, say_error

EXAMPLES = (
    "partialkd make_bin build lfw pairs.txt lfw112/ lfw.bin",
    "partialkd make_bin extract lfw.bin lfw_images/",
)

ARRAYS = "npy"  # the form of sets that are arrays of pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """Build or extract as the command line says; the exit status."""
    args = _parser().parse_args(arguments)
    try:
        facts, line = _build(args) if args.command == "build" else _extract(args)
        show(args.json, facts, line)
    except (PartialKDError, OSError) as error:
        say_error(error)
        return 1
    return 0


def _build(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if args.form == ARRAYS:
        bgr = None if args.colour is None else args.colour == "bgr"
        count = build_from_pixels(args.pairs, args.images, args.out, bgr)
        return {"file": args.out, "pairs": count}, f"{args.out}: {count} pairs"
    pairs = read_pair_list(args.form, args.pairs, args.names, args.allow_duplicates)
    count = build_bin(pairs, args.images, args.out, args.image_size, args.resize)
    same = sum(pair.same for pair in pairs)
    return {"file": args.out, "pairs": count, "same": same}, f"{args.out}: {count} pairs, {same} of one person"


def _extract(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    images, pairs = extract_bin(args.bin, args.folder)
    facts = {"folder": args.folder, "images": images, "pairs": pairs}
    return facts, f"{args.folder}: {images} images, {pairs} pairs in {PAIRS}"


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(examples=EXAMPLES, description="Build or take apart a verification set.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="aligned images and a list of pairs -> .bin")
    build.add_argument("form", choices=[*FORMS, ARRAYS], help="form of the list")
    build.add_argument("pairs", type=Path, help="the list; cfp-*: the folder Protocol; npy: lfw_list.npy or issame.txt")
    build.add_argument("images", type=Path, help="folder of the paths, .tar of <identity>/<image>; npy: the array")
    build.add_argument("out", type=Path, help=".bin to write")
    build.add_argument(
        "--names", default=LFW_NAMES, help="lfw, xqlfw, rfw: path of a name and a number (default %(default)s)"
    )
    build.add_argument("--colour", choices=["rgb", "bgr"], help="npy: order (default: uint8 rgb, floats bgr)")
    build.add_argument("--image-size", type=int, default=112, help="pixels per side (default %(default)s)")
    build.add_argument("--resize", action="store_true", help="bring images of another size to it")
    build.add_argument("--allow-duplicates", action="store_true", help="a pair may be listed again")
    extract = commands.add_parser("extract", help=f".bin -> FOLDER/images and FOLDER/{PAIRS}")
    extract.add_argument("bin", type=Path)
    extract.add_argument("folder", type=Path)
    for direction in (build, extract):
        add_json(direction)
    return parser
