"""List and read the images of a tree `<identity>/<image>`: a folder or a tar archive.

Not looked at: hidden files, what Windows, macOS and network storage leave beside pictures, and files beside the
identities.
"""

from __future__ import annotations

import errno
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from partialkd.data.formats.tar_stream import read_members
from partialkd.errors import DataError
from partialkd.world.passes import counted

_MOST_BYTES = 1 << 28  # of a member; an image of decode.MAX_PIXELS takes less
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")
_LITTER = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # what systems leave in folders that they show or pack


def list_images(tree: Path) -> dict[str, list[str]]:
    """List the images of a tree: identity -> its image names, both sorted."""
    if os.path.isdir(tree):
        listing = list_folder(tree)
        if listing.problems:
            raise DataError(f"{tree}/{listing.problems[0][0]}: {listing.problems[0][1]}")
        paths = listing.paths
    else:
        paths = [path for path, _ in counted(_members(tree, ()), f"looking through {tree.name}", None, "images")]
    found: dict[str, list[str]] = {}
    for path in sorted(set(paths)):
        identity, _, image = path.partition("/")
        found.setdefault(identity, []).append(image)
    if not found:
        raise DataError(f"{tree}: no <identity>/<image> in it")
    return found


def read_images(tree: Path, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Read the wanted `<identity>/<image>`: (path, encoded bytes), in any order; `DataError` if one is missing."""
    missing = set(wanted)
    for path, encoded in _files(tree, sorted(missing)) if os.path.isdir(tree) else _members(tree, missing):
        if path in missing:
            missing.discard(path)
            yield path, encoded
    if missing:
        raise DataError(f"{tree}: no image {min(missing)} in it ({len(missing)} such images)")


def _files(tree: Path, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    for path in wanted:
        if ".." in path.split("/") or not os.path.isfile(tree / path.lstrip("/")):
            continue
        try:
            yield path, read_file(tree / path.lstrip("/"))
        except OSError as error:
            raise DataError(f"{tree}/{path}: cannot be read: {error.strerror}") from error


def _members(tree: Path, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Read the images of an archive, in its order; only wanted ones are read, others come as b"".

    Hidden files, and files beside the identities, are not looked at.
    """
    try:
        for archive, member in read_members(tree):
            path = _path_of(member, tree)
            if path is not None:
                file = archive.extractfile(member) if path in wanted else None
                yield path, file.read() if file else b""
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{tree}: cannot be read: {why}") from error


def _path_of(member: tarfile.TarInfo, tree: Path) -> str | None:
    """Return `<identity>/<image>` of a member, or None for what is not looked at."""
    parts = Path(member.name).parts
    if member.size > _MOST_BYTES:  # tarfile would believe it: skip for hours, or fill the memory
        rule = f"a member has at most {_MOST_BYTES} bytes"
        raise DataError(f"{tree}: {member.name}: {rule}, its header says {member.size}")
    if member.isdir() or len(parts) < 2 or any(is_hidden(part) and part != ".." for part in parts):
        return None
    if not member.isfile() or member.issparse() or len(parts) != 2 or ".." in parts or member.name.startswith("/"):
        raise DataError(f"{tree}: {member.name}: must be a file <identity>/<image>")
    if not parts[1].lower().endswith(IMAGE_SUFFIXES):
        raise DataError(f"{tree}: {member.name}: not an image file (by its name)")
    return "/".join(parts)


def read_file(path: Path) -> bytes:
    """Read an image file; OSError also for what is no file, such as a pipe that would be waited for, or too large."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is not a file", str(path))
    if found.st_size > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"an image has at most {_MOST_BYTES} bytes, got {found.st_size}", str(path))
    return path.read_bytes()


class Listing:
    """Holds what `list_folder` found: names by class id, paths relative to the folder with their labels, problems."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.paths: list[str] = []
        self.labels: list[int] = []
        self.problems: list[tuple[str, str]] = []  # path, reason


def list_folder(folder: Path) -> Listing:
    """List all `<identity>/<image>` of a folder, sorted, without hidden files and files beside the identities."""
    listing = Listing()
    entries = _visible(folder)
    for identity in counted(entries, f"listing {folder.name}", len(entries), "identities"):
        if not _is(identity.is_dir):
            continue
        label = len(listing.names)
        listing.names.append(identity.name)
        for entry in _visible(Path(identity.path)):
            path = f"{identity.name}/{entry.name}"
            if _is(entry.is_file) and entry.name.lower().endswith(IMAGE_SUFFIXES):
                listing.paths.append(path)
                listing.labels.append(label)
            else:
                listing.problems.append((path, "not an image file (by its name)"))
        if not listing.labels or listing.labels[-1] != label:
            listing.problems.append((identity.name, "identity without an image"))
    if not listing.names:
        raise DataError(f"{folder}: no <identity>/<image> in this folder")
    return listing


def _is(kind: Callable[[], bool]) -> bool:
    """Ask an entry what it is; a link that leads round in a circle is neither file nor folder."""
    try:
        return kind()
    except OSError:
        return False


def is_hidden(name: str) -> bool:
    """Tell files and folders that are not looked at: hidden ones, and what systems leave beside pictures."""
    return name.startswith(".") or name.lower() in _LITTER


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
