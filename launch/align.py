"""Photographs to aligned faces: `python launch/align.py --help`."""

from __future__ import annotations

from partialkd.world.command import command


def main() -> int:
    """Exit status."""
    from partialkd.commands.align import main

    return main()


if __name__ == "__main__":
    raise SystemExit(command(main, progress="stderr"))
