"""Folders that are made once: complete, with a manifest of what they were made from, or absent.

manifest.json holds {"made_from": settings, "facts": what came out}. A folder made from equal settings is used as it
is; one made from others, or not made here at all, is never touched: `DataError` naming the folder and the difference.

While it is made it is a hidden folder beside its later name, called after the process that makes it. The next start
removes what a process that was killed left there, if it can see that this process has ended: it ran on this machine,
since this machine was started. Other leftovers may still be worked on by another machine; they are named in a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

from partialkd.errors import DataError
from partialkd.storage.atomic_files import sync, write_json
from partialkd.storage.process import Place

MANIFEST = "manifest.json"
_MAKER = re.compile(r"(\d+)-(\d*)-([0-9a-f]{12})-[0-9a-f]{8}")  # process, its birth, where, a random number


def made_before(folder: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """The facts of a folder made from equal settings; None if the folder is absent or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        before, facts = manifest["made_from"], manifest["facts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        rule = "exists and was not made by this program; choose another data.path or leave out data.prepare"
        raise DataError(f"{folder}: {rule} ({type(error).__name__}: {error})") from error
    wanted = json.loads(json.dumps(made_from))
    differences = [
        f"{key} is {json.dumps(before.get(key))} there, {json.dumps(wanted.get(key))} here"
        for key in sorted(before.keys() | wanted.keys())
        if before.get(key) != wanted.get(key)
    ]
    if differences:
        rule = "was made from other settings; remove it or choose another data.path"
        raise DataError(f"{folder}: {rule}: {'; '.join(differences)}")
    return facts


@contextmanager
def making(folder: Path, made_from: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A temporary folder to fill and facts to fill in; at the end it takes its name, on an error it is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = fresh_partial(folder)
    temporary.mkdir()
    facts: dict[str, Any] = {}
    try:
        yield temporary, facts
        write_json(temporary / MANIFEST, {"made_from": made_from, "facts": facts})
        try:
            os.replace(temporary, folder)
        except OSError as error:
            raise DataError(f"{folder}: appeared while it was being made: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync(folder.parent)


def fresh_partial(folder: Path) -> Path:
    """A name for what is to become `folder`; what processes that have ended left under such names is removed."""
    mine, where = Place.here(), _where(Place.here())
    for left in folder.parent.glob(f".{escape(folder.name)}.*.partial"):
        match = _MAKER.fullmatch(left.name.removeprefix(f".{folder.name}.").removesuffix(".partial"))
        if match is None:  # not called so by this function
            continue
        state = replace(mine, pid=int(match[1]), born=match[2]).state() if match[3] == where else "unknown"
        if state == "gone":
            shutil.rmtree(left, ignore_errors=True)  # another start may be at it too
        if left.exists() and state in ("gone", "unknown"):
            why = "could not be removed" if state == "gone" else "of another machine, which may still be writing it"
            warnings.warn(f"{left}: left by an earlier start, {why}", stacklevel=3)
    return folder.with_name(f".{folder.name}.{mine.pid}-{mine.born}-{where}-{os.urandom(4).hex()}.partial")


def _where(place: Place) -> str:
    """Equal for processes that can tell whether the other one lives."""
    return hashlib.sha256(f"{place.host} {place.system}".encode()).hexdigest()[:12]
