"""Folders that are made once: complete, with a manifest of what they were made from, or absent.

manifest.json holds {"made_from": settings, "facts": what came out, "files": size and CRC-32 of each file}. A folder
made from equal settings is used as it is, once its files have been compared with that; one made from others, or not
made here at all, is never touched. What is equal, the caller may say.
Errors: `DataError` naming the folder and the difference, or the damaged file.
While it is made it is a hidden folder beside its later name (atomic_files.py), and claimed (claim.py): of several jobs
that want the same folder at once the first makes it, the others wait, saying for whom, and take what is equal.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from partialkd.errors import DataError
from partialkd.storage.atomic_files import followed, new_folder
from partialkd.storage.claim import claimed
from partialkd.storage.listed_files import check_listed, sums_of
from partialkd.storage.manifest import read_manifest, write_manifest

LARGE = (".rec",)  # above 256 MiB compared by size alone: it would be read whole at every start
Fill = Callable[[Path, dict[str, Any]], None]  # puts files into the folder and facts into the dictionary
Changes = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], list[str]]  # settings there, here, facts there


def setting_changes(there: dict[str, Any], here: dict[str, Any], _: dict[str, Any] | None = None) -> list[str]:
    """Say which settings differ, key by key."""
    return [
        f"{key} is {json.dumps(there.get(key))} there, {json.dumps(here.get(key))} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


def make_once(
    folder: Path, made_from: dict[str, Any], fill: Fill, changes: Changes = setting_changes
) -> dict[str, Any]:
    """The facts of a folder made from these settings, made by `fill` if it is not there."""
    facts = made_before(folder, made_from, changes)
    if facts is not None:
        return facts
    folder = followed(folder)
    with claimed(folder, waiting_for="making it"):
        facts = made_before(folder, made_from, changes)  # by the one that was waited for
        return _made(folder, made_from, fill) if facts is None else facts


def _made(folder: Path, made_from: dict[str, Any], fill: Fill) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    try:
        with new_folder(folder) as new:
            fill(new, facts)
            write_manifest(new, {"made_from": made_from, "facts": facts, "files": sums_of(new)})
    except FileExistsError as error:
        raise DataError(f"{folder}: appeared while it was being made: {error.strerror}") from error
    return json.loads(json.dumps(facts))


def made_before(folder: Path, made_from: dict[str, Any], changes: Changes = setting_changes) -> dict[str, Any] | None:
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
    differences = changes(before, json.loads(json.dumps(made_from)), facts)
    if differences:
        rule = "was made from other settings; remove it or choose another data.path"
        raise DataError(f"{folder}: {rule}: {'; '.join(differences)}")
    try:
        check_listed(folder, manifest.get("files", {}), DataError, LARGE)
    except DataError as error:
        raise DataError(f"{error}; remove {folder} to make it anew") from error
    return facts
