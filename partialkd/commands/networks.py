"""Options by which a command chooses a network in a run folder."""

from __future__ import annotations

import argparse

from partialkd.run.folder import PHASES


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add `--checkpoint` and `--phase`."""
    group = parser.add_argument_group("a run folder")
    group.add_argument("--checkpoint", metavar="best|last|STEP", help="(default: the finished network, else the last)")
    group.add_argument("--phase", choices=PHASES, default="student", help="whose network (default: student)")
