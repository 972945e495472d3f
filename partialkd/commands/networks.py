"""Options by which a command chooses a network in a run folder."""

from __future__ import annotations

import argparse
import re

_PHASES = "teacher|student|alone|generation_[1-9][0-9]*"


_PHASE = "whose network: teacher, student, alone, generation_1, ... (default: student)"


def phase_name(text: str) -> str:
    """Return the name of a phase; argparse's error for anything else."""
    if not re.fullmatch(_PHASES, text):
        raise argparse.ArgumentTypeError(f"must be teacher, student, alone or generation_<number>, got {text!r}")
    return text


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add `--checkpoint` and `--phase`."""
    group = parser.add_argument_group("a run folder")
    group.add_argument("--checkpoint", metavar="best|last|STEP", help="(default: the finished network, else the last)")
    group.add_argument("--phase", type=phase_name, metavar="PHASE", default="student", help=_PHASE)
