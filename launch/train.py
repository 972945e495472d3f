"""Train: torchrun --nproc_per_node=N launch/train.py [CONFIG] [section.key=value ...] [--resume auto|never|PATH].

Without CONFIG: configs/quickstart.toml. Exit status of a rank: 0 done; 1 failed; 2 wrong configuration; 75 asked to
stop by a signal (SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1) and saved; 130 interrupted before. torchrun: 1.
Ranks that torchrun itself starts again (--max-restarts) go on with the run, whatever --resume says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from partialkd.world.command import command
from partialkd.world.parent_death import die_with_launcher

DEFAULT = Path(__file__).parents[1] / "configs" / "quickstart.toml"


def main() -> int:
    """Exit status."""
    die_with_launcher()
    from partialkd.config.load import load_config
    from partialkd.run.job import run_job
    from partialkd.world.launch import configured, launched

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="CONFIG section.key=value")
    parser.add_argument("--resume", default="never", metavar="auto|never|PATH")
    args = parser.parse_intermixed_args()
    overrides = [argument for argument in args.arguments if "=" in argument]
    paths = [argument for argument in args.arguments if "=" not in argument]
    if len(paths) > 1:
        parser.error(f"one CONFIG, got {paths}")
    config = configured(lambda: load_config(paths[0] if paths else DEFAULT, overrides))
    return launched(config.dist, lambda world: run_job(config, world, args.resume), ("--resume", "auto"))


if __name__ == "__main__":
    raise SystemExit(command(main))
