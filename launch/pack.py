"""Pack images as the train.rec, train.idx and property that training reads, or unpack such a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from partialkd.data.packing.pack import PackOptions, pack, unpack
from partialkd.errors import PartialKDError


def main() -> int:
    """Exit status: 0, or 1 with every problem on stderr and nothing written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("direction", choices=["pack", "unpack"])
    source = "folder <identity>/<image>, or list (path<TAB>class id a line); unpack: packed folder"
    parser.add_argument("source", type=Path, help=source)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--size", type=int, help="resize to this many pixels a side")
    parser.add_argument("--quality", type=int, help="re-encode as JPEG of this quality, 1..100")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out and list in OUT/skipped.txt")
    parser.add_argument("--workers", type=int, default=PackOptions().workers, help="threads")
    args = parser.parse_args()
    try:
        options = PackOptions(args.size, args.quality, args.skip_unreadable, args.workers)
        if args.direction == "unpack":
            print(f"{unpack(args.source, args.out, args.workers)} images unpacked into {args.out}")
        else:
            count, skipped = pack(args.source, args.out, options)
            print(f"{count} images packed into {args.out}, {len(skipped)} skipped")
    except PartialKDError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
