"""Pack photographs as the folder that training reads, or take one apart: `python launch/pack.py --help`."""

from __future__ import annotations

from partialkd.world.command import command


def main() -> int:
    """Exit status."""
    from partialkd.commands.pack import main

    return main()


if __name__ == "__main__":
    raise SystemExit(command(main, progress="stderr"))
