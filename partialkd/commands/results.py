"""What a command gives, for people as lines, and for programs as JSON where `--json` asks for it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partialkd.storage.atomic_files import write_json
from partialkd.world.messages import output

STANDARD_OUTPUT = "-"


def add_json(parser: argparse.ArgumentParser, alone: bool = True) -> None:
    """Add `--json FILE`. alone: `-` puts the results on the standard output, where nothing else is said then."""
    text = "also write the results there"
    text += "; -: on the standard output, in place of what people read" if alone else ""
    parser.add_argument("--json", metavar="FILE", type=_writable if alone else _writable_file, help=text)


def show(json_to: str | None, facts: Mapping[str, Any], *lines: object) -> None:
    """Print the lines and write the facts as JSON, as `--json` says."""
    if json_to == STANDARD_OUTPUT:
        print(json.dumps(dict(facts), indent=2, default=str), flush=True)
        return
    output(*lines)
    if json_to:
        write_facts(json_to, facts)


def write_facts(path: str, facts: Mapping[str, Any]) -> None:
    """Write the facts as JSON; what JSON has no form for as text."""
    write_json(Path(path), json.loads(json.dumps(dict(facts), default=str)))


def _writable(text: str) -> str:
    """Refuse a file that could not be written once the work is done."""
    if text != STANDARD_OUTPUT and (problem := unwritable(Path(text))):
        raise argparse.ArgumentTypeError(f"{text}: {problem}")
    return text


def unwritable(path: Path) -> str | None:
    """Say why a file could not be written, if it could not."""
    if path.is_dir():
        return "must be a file, is a folder"
    there = path.parent.is_dir() and os.access(path.parent, os.W_OK)
    return None if there else "its folder must exist and be writable"


def _writable_file(text: str) -> str:
    if text == STANDARD_OUTPUT:
        raise argparse.ArgumentTypeError("must be a file: the standard output has what people read")
    return _writable(text)
