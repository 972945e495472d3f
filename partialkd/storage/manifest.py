"""The manifest of a folder: JSON that says what the folder is, with the checksum of what it says.

`manifest.json` holds {facts..., "crc32": eight hexadecimal digits}, the CRC-32 of the facts as JSON with sorted keys.
A manifest of an earlier version may lack it and is then believed as it is. It is written last, into a folder that is
still hidden. Errors: of the kind the caller names (`CheckpointError`, `DataError`, `TeacherError`), naming the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from partialkd.errors import PartialKDError
from partialkd.storage.atomic_files import write_bytes
from partialkd.storage.checksum import crc32, hexadecimal

MANIFEST = "manifest.json"
_SUM = "crc32"


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of a folder."""
    write_bytes(folder / MANIFEST, manifest_bytes(facts))


def manifest_bytes(facts: dict[str, Any]) -> bytes:
    """The content of a manifest that says `facts`."""
    return (json.dumps({**facts, _SUM: _sum(facts)}, indent=2, allow_nan=False) + "\n").encode()


def read_manifest(
    folder: Path,
    kind: type[PartialKDError],
    form: int | str | None = None,
    required: bool = False,
    name: str = MANIFEST,
) -> dict[str, Any]:
    """What the manifest of a folder says (or another file of that kind in it), without its checksum.

    form: what its "format" must be, if it has one. required: a manifest without a checksum is damaged.
    """
    path = folder / name
    try:
        facts = json.loads(path.read_bytes())
        if not isinstance(facts, dict):
            raise ValueError(f"it holds a {type(facts).__name__}")
    except OSError as error:
        raise kind(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # JSON that is too deep is no manifest either
        raise kind(f"{path}: damaged: not the JSON of a manifest: {error}") from error
    if form is not None and facts.get("format") != form:
        raise kind(f"{path}: format must be {form!r}, got {facts.get('format')!r}")
    expected = facts.pop(_SUM, None)
    if expected is None and required:
        raise kind(f"{path}: damaged: its checksum ({_SUM}) is missing")
    if expected is not None and expected != _sum(facts):
        raise kind(f"{path}: damaged: it is not what its own checksum says")
    return facts


def _sum(facts: dict[str, Any]) -> str:
    return hexadecimal(crc32(json.dumps(json.loads(json.dumps(facts)), sort_keys=True).encode()))
