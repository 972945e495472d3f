"""What a rank leaves for the launcher, which outlives it: that it was stopped, and which files it has mapped.

Notes are files in a folder that the launcher names in the environment and removes when it ends; without a launcher
(torchrun itself, or one process) there are none. Light: imports nothing slow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

NOTES = "PARTIALKD_NOTES"  # in the environment: the folder
LAUNCHED_AS = "PARTIALKD_LAUNCHED_AS"  # in the environment: the command that a user gave, as a shell takes it
STOPPED_NOTE = "stopped"


def launched() -> bool:
    """Whether a launcher reads what is noted."""
    return NOTES in os.environ


def note_stopped(options: Sequence[str]) -> None:
    """The ranks were stopped and have saved; with these options, the command goes on."""
    (Path(os.environ[NOTES]) / STOPPED_NOTE).write_text(" ".join(options))


def note_mapped(path: Path) -> None:
    """This rank reads the file through a memory map: if somebody cuts it, the system ends the rank without a word."""
    if launched():
        with (
            suppress(OSError),
            _mapped_by(Path(os.environ[NOTES]), int(os.environ.get("RANK", "0"))).open("a") as notes,
        ):
            notes.write(json.dumps([str(Path(path).absolute()), path.stat().st_size]) + "\n")


def shrunk(folder: Path, of_rank: int) -> str:
    """Files that the rank had mapped and that are shorter now, or gone; "" if there are none."""
    notes = _mapped_by(folder, of_rank)
    found = []
    for path, size in map(json.loads, notes.read_text().splitlines() if notes.exists() else []):
        now = os.stat(path).st_size if os.path.exists(path) else None
        if now is None or now < size:
            then = "is gone" if now is None else f"has {now} now"
            found.append(f"{path} had {size} bytes when it was mapped, {then}")
    return "; ".join(dict.fromkeys(found))


def _mapped_by(folder: Path, of_rank: int) -> Path:
    return folder / f"mapped_{of_rank}"


def with_options(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """The words of a command with this option (and its value) instead of the one they may have."""
    if not options:
        return list(words)
    kept, skip = [], 0
    for word in words:
        if skip:
            skip -= 1
        elif word == options[0]:
            skip = len(options) - 1
        elif not word.startswith(f"{options[0]}="):
            kept.append(word)
    return [*kept, *options]
