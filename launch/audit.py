"""Look through a data set by its teacher's embeddings: `python launch/audit.py --help`."""

from __future__ import annotations

from partialkd.world.command import command


def main() -> int:
    """Exit status."""
    from partialkd.commands.audit import main

    return main()


if __name__ == "__main__":
    raise SystemExit(command(main, progress="stderr"))
