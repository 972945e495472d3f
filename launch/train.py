"""Train: torchrun --nproc_per_node=N launch/train.py [CONFIG] [section.key=value ...] [--resume auto|never|PATH]."""

from __future__ import annotations

from partialkd.world.command import command
from partialkd.world.parent_death import die_with_launcher


def main() -> int:
    """Exit status."""
    die_with_launcher()
    from partialkd.commands.train import main

    return main()


if __name__ == "__main__":
    raise SystemExit(command(main))
