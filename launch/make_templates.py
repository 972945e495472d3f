"""Make a small set of templates from aligned faces: `python launch/make_templates.py --help`."""

from __future__ import annotations

from partialkd.world.command import command


def main() -> int:
    """Exit status."""
    from partialkd.commands.make_templates import main

    return main()


if __name__ == "__main__":
    raise SystemExit(command(main, progress="stderr"))
