"""Arguments by which a command is given a network: a file, or a run folder and what is chosen in it."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

_PHASES = "teacher|student|alone|generation_[1-9][0-9]*"


_PHASE = "whose network: teacher, student, alone, generation_1, ... (default: student)"


def phase_name(text: str) -> str:
    """Return the name of a phase; argparse's error for anything else."""
    if not re.fullmatch(_PHASES, text):
        raise argparse.ArgumentTypeError(f"must be teacher, student, alone or generation_<number>, got {text!r}")
    return text


def check_there(parser: argparse.ArgumentParser, model: Path) -> None:
    """End with a wrong argument's status if there is no such file or folder."""
    if not model.exists():
        parser.error(f"{model}: no such file")


def check_folder(parser: argparse.ArgumentParser, folder: Path) -> None:
    """End with a wrong argument's status for a folder that cannot be made or written to, before any work."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        parser.error(f"{folder}: must be a folder that can be written to, or made; {there} is not")


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the network, and what is chosen in a run folder."""
    parser.add_argument("model", type=Path, help="a run folder, a run's model.safetensors or a checkpoint")
    add_choice(parser)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add `--checkpoint` and `--phase`."""
    group = parser.add_argument_group("a run folder")
    group.add_argument("--checkpoint", metavar="best|last|STEP", help="(default: the finished network, else the last)")
    group.add_argument("--phase", type=phase_name, metavar="PHASE", default="student", help=_PHASE)
