"""List the images that are to be packed, with the identity of each: from a folder or from a list file.

A folder is `<identity>/<image>`, class ids in the order of the sorted identity names. A list file has a line
`path<TAB>label` or `path,label` per image, paths relative to the file, labels the class ids, which are not changed
unless this is asked for: a teacher's classifier and label maps may know the identities by them. In a `.lst` file, as
MXNet's im2rec has it, a line is `number<TAB>label<TAB>path`; of several labels the first counts.
Errors: `DataError` naming the folder, or the list and its line.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from partialkd.data.formats.image_list_file import parse_line
from partialkd.data.formats.image_tree import list_folder
from partialkd.data.formats.insightface_folder import FLOAT_EXACT, check_names
from partialkd.data.formats.text_file import read_lines
from partialkd.errors import DataError

_NUMBER = re.compile(r"[0-9]{1,10}")
Gaps = Literal["refuse", "keep", "renumber"]  # where class ids without an image are listed between others


@dataclass(frozen=True)
class Problem:
    """Image that cannot be packed."""

    path: str
    reason: str


@dataclass
class ImageList:
    """Holds what to pack: paths and labels in ascending order of labels, identity names by label."""

    root: Path
    names: list[str]
    paths: list[str]
    labels: list[int]
    problems: list[Problem] = field(default_factory=list)


def list_to_pack(images: Path, gaps: Gaps) -> ImageList:
    """List the images of a folder or of a list file, with names that can be written."""
    todo = _from_folder(images) if os.path.isdir(images) else _from_list(images, gaps)
    try:
        check_names(todo.names, len(todo.names))
    except DataError as error:
        raise DataError(f"{images}: {error}") from error
    return todo


def _from_folder(folder: Path) -> ImageList:
    found = list_folder(folder)
    return ImageList(folder, found.names, found.paths, found.labels, [Problem(*problem) for problem in found.problems])


def _from_list(path: Path, gaps: Gaps) -> ImageList:
    read = _lst_entry if path.suffix == ".lst" else _entry
    entries = sorted((read(line, f"{path}: line {number}") for number, line in read_lines(path)), key=lambda e: e[0])
    if not entries:
        raise DataError(f"{path}: no image in the list")
    used, labels = np.unique([label for label, _ in entries], return_inverse=True)
    count = int(used[-1]) + 1
    if gaps == "refuse" and len(used) < count:
        first = int(np.flatnonzero(used != np.arange(len(used)))[0])
        found = f"{len(used)} of the class ids 0 to {count - 1} have images, the first without is {first}"
        raise DataError(f"{path}: {found}; --renumber numbers them anew, --keep-gaps trains centres without images")
    if gaps == "renumber":
        return ImageList(
            path.parent, [str(label) for label in used.tolist()], [name for _, name in entries], labels.tolist()
        )
    names = [str(label) for label in range(count)]
    return ImageList(path.parent, names, [name for _, name in entries], [label for label, _ in entries])


def _entry(line: str, where: str) -> tuple[int, str]:
    """Read class id and path of a line."""
    name, separator, label = line.rpartition("\t" if "\t" in line else ",")
    if not separator or not name.strip() or not _NUMBER.fullmatch(label.strip()):
        raise DataError(f"{where}: must be path<TAB>label or path,label, got {line[:120]!r}")
    if int(label) >= FLOAT_EXACT:
        raise DataError(f"{where}: label must be below {FLOAT_EXACT}, got {label.strip()}")
    return int(label), name.strip()


def _lst_entry(line: str, where: str) -> tuple[int, str]:
    """Read class id and path of a line of a .lst."""
    found = parse_line(line, where)
    return found.label, found.path
