"""`launch/align.py`: photographs to aligned faces, by a detector or by landmarks that somebody else found.

Errors: one line on the error output and status 1; wrong options, status 2. A start that was broken off goes on where
it was.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from partialkd.align.folder import (
    JOURNAL,
    AlignOptions,
    Finder,
    align_folder,
    detecting,
    given,
    list_images,
    read_journal,
)
from partialkd.align.landmark_file import LandmarkFile
from partialkd.align.open import LONGEST, SCORE, detector_maker
from partialkd.align.template import SIDE
from partialkd.commands.results import add_json, show
from partialkd.data.packing.pack import PackOptions, pack
from partialkd.errors import PartialKDError, printable
from partialkd.storage.atomic_files import refuse_existing
from partialkd.world.command import CommandParser, say_error

EXAMPLES = (
    "partialkd align photos/ aligned/ --detector face_detection_yunet.onnx",
    "partialkd align photos/ aligned/ --landmarks landmarks.csv --rec data/mine",
)

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Align a folder as the command line says; the exit status."""
    args = _parser().parse_args(arguments)
    try:
        if args.rec:
            refuse_existing(args.rec / "train.rec")
        find, made_with = _finder(args)
        options = AlignOptions(args.size, args.faces == "all", args.workers)
        total = len(list_images(args.folder))
        for _ in align_folder(args.folder, args.out, find, made_with, options):
            pass
        facts, lines = outcome(args.out, total), summary(args.out, total).split("\n")
        if args.rec:
            facts["packed"], _ = pack(args.out, args.rec, PackOptions(workers=args.workers))
            lines.append(f"{args.rec}: {facts['packed']} images packed")
        show(args.json, facts, *lines)
    except (PartialKDError, OSError) as error:
        say_error(error)
        return 1
    return 0


def outcome(out: Path, total: int) -> dict[str, Any]:
    """Count what became of the images."""
    rows = read_journal(out)
    reasons = Counter(row[2] for row in rows if not row[1])
    return {"folder": str(out), "images": total, "faces": sum(1 for row in rows if row[1]), "without": dict(reasons)}


def summary(out: Path, total: int) -> str:
    """What became of the images: how many show a face, and why others do not."""
    rows = read_journal(out)
    aligned = [row for row in rows if row[1]]
    reasons = Counter(row[2] for row in rows if not row[1])
    lines = [f"{out}: {len(aligned)} faces of {len({row[0] for row in aligned})} images, of {total}"]
    lines += [f"{count} images: {printable(reason)}" for reason, count in reasons.most_common(5)]
    if reasons:
        lines.append(f"all of them by name: {out / JOURNAL}")
    return "\n".join(lines)


def _finder(args: argparse.Namespace) -> tuple[Finder, dict[str, Any]]:
    """How faces are found, and what of it makes a result another one."""
    if args.detector:
        find = detecting(detector_maker(args.detector, args.score, args.longest))
        return find, {"detector": args.detector.name, "score": args.score, "longest": args.longest}
    landmarks = LandmarkFile(args.landmarks)
    _log.info(landmarks.match(list_images(args.folder)))
    return given(landmarks), {"landmarks": args.landmarks.name}


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        examples=EXAMPLES,
        description="Find the faces of photographs and bring them to the ArcFace template.",
    )
    parser.add_argument("folder", type=Path, help="photographs, mostly <identity>/<image>")
    parser.add_argument("out", type=Path, help="folder to make, or to go on with")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--detector", type=Path, metavar="FILE.onnx", help="YuNet (needs OpenCV), SCRFD or RetinaFace")
    how.add_argument("--landmarks", type=Path, metavar="FILE", help="five points per image: .csv or InsightFace's .txt")
    parser.add_argument("--faces", choices=["one", "all"], default="one", help="one: large, near the middle (default)")
    parser.add_argument("--size", type=int, default=SIDE, help="pixels a side (default %(default)s)")
    parser.add_argument("--score", type=float, default=SCORE, help="least score of a face (default %(default)s)")
    parser.add_argument(
        "--longest", type=int, default=LONGEST, help="the detector sees this many pixels (default %(default)s)"
    )
    parser.add_argument("--rec", type=Path, metavar="FOLDER", help="pack the aligned faces as train.rec in this folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads")
    add_json(parser)
    return parser
