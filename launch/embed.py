"""Keep a teacher's embeddings: torchrun --nproc_per_node=N launch/embed.py CONFIG [section.key=value ...] [options]."""

from __future__ import annotations

from partialkd.world.command import command


def main() -> int:
    """Exit status."""
    from partialkd.commands.embed import main

    return main()


if __name__ == "__main__":
    raise SystemExit(command(main))
