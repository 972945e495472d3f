"""Keep a teacher's embeddings: torchrun --nproc_per_node=N launch/embed.py CONFIG [section.key=value ...] [options].

Writes a teacher cache of the configuration's data, to be named in teacher.cache: every record, plain and mirrored, and
the class means. A pass that was broken off goes on with --resume, on any number of ranks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from partialkd.world.command import command


def main() -> int:
    """Exit status: that of launch/train.py."""
    from partialkd.commands.embed import embed, output_of
    from partialkd.config.load import load_config
    from partialkd.world.launch import configured, launched

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--output", metavar="FOLDER", help="folder to make (default: teacher.cache)")
    parser.add_argument("--dtype", choices=["fp16", "bf16", "fp32"], help="(default: teacher.cache_dtype, else fp16)")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished cache")
    parser.add_argument(
        "--records", type=Path, metavar="FOLDER", help="also write .rec files that carry the embeddings"
    )
    args = parser.parse_intermixed_args()
    load = lambda: output_of(load_config(args.config, args.overrides), args.output, args.dtype)
    config, folder = configured(load)
    return launched(config.dist, lambda world: embed(config, world, folder, args.resume, args.records), ("--resume",))


if __name__ == "__main__":
    raise SystemExit(command(main))
