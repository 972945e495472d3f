"""Build a verification set (.bin) or take one apart: `python launch/make_bin.py --help`."""

from __future__ import annotations

from partialkd.world.command import command


def main() -> int:
    """Exit status."""
    from partialkd.commands.make_bin import main

    return main()


if __name__ == "__main__":
    raise SystemExit(command(main, progress="stderr"))
