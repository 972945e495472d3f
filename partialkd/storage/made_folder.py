"""Folders that are made once: complete, with a manifest of what they were made from, or absent.

manifest.json holds {"made_from": settings, "facts": what came out}. A folder made from equal settings is used as it
is; one made from others, or not made here at all, is never touched: `DataError` naming the folder and the difference.
While it is made it is a hidden folder beside its later name (atomic_files.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from partialkd.errors import DataError
from partialkd.storage.atomic_files import new_folder
from partialkd.storage.manifest import read_manifest, write_manifest


def made_before(folder: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """The facts of a folder made from equal settings; None if the folder is absent or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        manifest = read_manifest(folder, DataError)
        before, facts = manifest["made_from"], manifest["facts"]
        if not isinstance(before, dict) or not isinstance(facts, dict):
            raise TypeError("made_from and facts must be tables")
    except (DataError, KeyError, TypeError) as error:
        rule = "exists and was not made by this program; choose another data.path or leave out data.prepare"
        raise DataError(f"{folder}: {rule} ({error})") from error
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
    """A hidden folder to fill and facts to fill in; at the end it takes its name, on an error it is removed."""
    facts: dict[str, Any] = {}
    try:
        with new_folder(folder) as new:
            yield new, facts
            write_manifest(new, {"made_from": made_from, "facts": facts})
    except FileExistsError as error:
        raise DataError(f"{folder}: appeared while it was being made: {error.strerror}") from error
