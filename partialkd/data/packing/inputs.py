"""Recognise what prepared data was made of by what is in it, wherever it lies now.

A file is known by its size and CRC-32, a folder by the paths and sizes of its images. Where the path is what it was,
a file's size alone is compared, and nothing of a folder: both would be read whole at every start. What is no longer
where it was is not asked for: what was made does not need it.
Errors: `DataError` naming a path that cannot be read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from partialkd.data.formats.image_tree import list_images
from partialkd.errors import DataError
from partialkd.storage.checksum import crc32, crc32_of_file, hexadecimal
from partialkd.world.passes import Pass

Print = dict[str, Any]  # of a file or folder: what is compared


def fingerprints(paths: dict[str, str | None]) -> dict[str, Print]:
    """Take the fingerprint of each path that is given."""
    return {key: _print(Path(path)) for key, path in paths.items() if path is not None}


def input_changes(
    there: dict[str, str | None], here: dict[str, str | None], prints: dict[str, Print], names: Sequence[str] = ()
) -> list[str]:
    """Say what is another input than it was.

    there, here: key -> path, of then and of now; prints: of then; names: keys whose path's last part counts too.
    """
    pairs = ((key, there.get(key), here.get(key)) for key in sorted(there.keys() | here.keys()))
    return [said for key, was, now in pairs if (said := _change(key, was, now, prints.get(key), key in names))]


def _change(key: str, was: str | None, now: str | None, known: Print | None, named: bool) -> str | None:
    if was is None or now is None:
        return None if was == now else f"{key} is {was!r} there, {now!r} here"
    if named and Path(was).name != Path(now).name:
        return f"{key} is {Path(was).name!r} there, {Path(now).name!r} here"
    if was == now:
        size = os.path.getsize(now) if os.path.isfile(now) else None
        before = known.get("bytes") if known else None
        return _differs(key, now, {"bytes": size}, {"bytes": before}) if size is not None and before else None
    if known is None:
        return f"{key} is {was!r} there, {now!r} here, and what was in it then is not known"
    if "bytes" in known and os.path.isfile(now) and os.path.getsize(now) != known["bytes"]:  # without reading it
        return _differs(key, now, {"bytes": os.path.getsize(now)}, known)
    return _differs(key, now, _print(Path(now)), known)


def _differs(key: str, path: str, found: Print, known: Print) -> str | None:
    changed = [name for name in known if found.get(name) != known[name]]
    facts = ", ".join(f"{name} {known[name]!r} then, {found.get(name)!r} now" for name in changed)
    return f"{key}: {path} holds something else than what it was made of ({facts})" if changed else None


def _print(path: Path) -> Print:
    with Pass(f"summing {path.name}"):
        if os.path.isdir(path):
            images = list_images(path)
            paths = [f"{identity}/{image}" for identity, names in images.items() for image in names]
            listing = "".join(f"{one} {os.path.getsize(path / one)}\n" for one in paths)
            return {"images": len(paths), "listing": hexadecimal(crc32(os.fsencode(listing)))}
        try:
            return {"bytes": path.stat().st_size, "crc32": hexadecimal(crc32_of_file(path))}
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
