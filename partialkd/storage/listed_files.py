"""Files of a folder that its manifest lists with size and CRC-32, under "files".

Errors: of the kind the caller names, naming the file that is missing or is not what was written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from partialkd.errors import CheckpointError, PartialKDError
from partialkd.storage.checksum import crc32_of_file, hexadecimal
from partialkd.storage.manifest import MANIFEST, read_manifest, write_manifest
from partialkd.storage.tensor_file import FileSum, check_file, check_size, sums_from_json, sums_to_json

EXPORT = "partialkd-export-1"
SUMMED_BYTES = 1 << 28  # a quarter of a second


def sums_of(folder: Path) -> dict[str, dict[str, Any]]:
    """What a manifest says of every file that is in a folder now, itself aside."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    return sums_to_json({path.relative_to(folder).as_posix(): _sum(path) for path in paths})


def check_listed(folder: Path, files: Any, kind: type[PartialKDError], by_size: tuple[str, ...] = ()) -> None:
    """Compare files with its manifest; `by_size`: suffixes of files of which, if large, the size alone."""
    try:
        for name, expected in sums_from_json(files).items():
            large = name.endswith(by_size) and expected.size > SUMMED_BYTES
            (check_size if large else check_file)(folder / name, expected)
    except CheckpointError as error:
        raise kind(str(error)) from error
    except (TypeError, AttributeError) as error:
        raise kind(f"{folder / MANIFEST}: its list of files cannot be read: {error}") from error


def write_export_manifest(folder: Path, names: tuple[str, ...]) -> None:
    """List these files of a folder, each as it is now."""
    write_manifest(folder, {"format": EXPORT, "files": sums_to_json({name: _sum(folder / name) for name in names})})


def check_exported(path: Path, kind: type[PartialKDError]) -> None:
    """Compare an exported file with the manifest beside it; not at all where there is none that lists it."""
    if not (path.parent / MANIFEST).is_file():
        return
    try:
        facts = read_manifest(path.parent, kind, EXPORT)
    except PartialKDError:
        if EXPORT.encode() in (path.parent / MANIFEST).read_bytes():
            raise
        return  # another program's, or of another folder of ours
    listed = facts.get("files")
    if isinstance(listed, dict) and path.name in listed:
        check_listed(path.parent, {path.name: listed[path.name]}, kind)


def _sum(path: Path) -> FileSum:
    return FileSum(path.stat().st_size, hexadecimal(crc32_of_file(path)))
