"""List the images that are to be packed, with the identity of each: from a folder, a list file, or any source.

A folder is `<identity>/<image>`, class ids in the order of the sorted identity names. A list file has a line
`path<TAB>label` or `path,label` per image, paths relative to the file, labels the class ids, which are not changed
unless this is asked for: a teacher's classifier and label maps may know the identities by them. In a `.lst` file, as
MXNet's im2rec has it, a line is `number<TAB>label<TAB>path`; of several labels the first counts.
A source's images are packed in its order.
Errors: `DataError` naming the folder, or the list and its line.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from partialkd.data.formats.image_list_file import parse_line
from partialkd.data.formats.image_tree import list_folder, read_file
from partialkd.data.formats.insightface_folder import FLOAT_EXACT, check_names
from partialkd.data.formats.text_file import read_lines
from partialkd.data.sources.source import Source
from partialkd.errors import DataError

_NUMBER = re.compile(r"[0-9]{1,10}")
Gaps = Literal["refuse", "keep", "renumber"]  # where class ids without an image are listed between others


@dataclass(frozen=True)
class Problem:
    """Image that cannot be packed."""

    path: str
    reason: str


class ToPack(ABC):
    """Holds what to pack: images by number, with a class id each, and the identities' names by class id."""

    def __init__(self, where: Path, names: list[str], labels: np.ndarray, problems: list[Problem]) -> None:
        self.where, self.names, self.labels, self.problems = where, names, labels, problems
        try:
            check_names(names, len(names))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sorted(self) -> bool:
        """Whether class ids ascend."""
        return bool((self.labels[1:] >= self.labels[:-1]).all())

    @abstractmethod
    def name(self, number: int) -> str:
        """Name an image for error messages."""

    @abstractmethod
    def read(self, number: int) -> bytes:
        """Read an encoded image; safe from several threads."""


class FilesToPack(ToPack):
    """Files below a folder, in ascending order of class ids."""

    def __init__(
        self, root: Path, where: Path, names: list[str], paths: list[str], labels: np.ndarray, problems: list[Problem]
    ) -> None:
        super().__init__(where, names, labels, problems)
        self.root, self.paths = root, paths

    def name(self, number: int) -> str:
        return self.paths[number]

    def read(self, number: int) -> bytes:
        return read_file(self.root / self.paths[number])


class SourceToPack(ToPack):
    """The images of a source, in its order."""

    def __init__(self, source: Source, where: Path, gaps: Gaps) -> None:
        known = source.names.known() or [str(label) for label in range(source.num_classes)]
        labels, names = numbered(source.labels(), known, gaps, where)
        super().__init__(where, names, labels, [])
        self.source = source

    def name(self, number: int) -> str:
        return self.source.name(number)

    def read(self, number: int) -> bytes:
        return self.source.read(number)[0]


def files_to_pack(images: Path, gaps: Gaps) -> FilesToPack:
    """List the images of a folder or of a list file, with names that can be written."""
    return _from_folder(images) if os.path.isdir(images) else _from_list(images, gaps)


def numbered(labels: np.ndarray, names: list[str], gaps: Gaps, where: Path) -> tuple[np.ndarray, list[str]]:
    """Treat class ids without an image as `gaps` says -> labels (n,) int64, the names by class id."""
    used, renumbered = np.unique(labels, return_inverse=True)
    if len(used) == len(names) or gaps == "keep":
        return labels, names
    if gaps == "renumber":
        return renumbered, [names[label] for label in used.tolist()]
    first = int(np.flatnonzero(np.append(used, -1) != np.arange(len(used) + 1))[0])
    found = f"{len(used)} of the class ids 0 to {len(names) - 1} have images, the first without is {first}"
    raise DataError(f"{where}: {found}; --renumber numbers them anew, --keep-gaps trains centres without images")


def _from_folder(folder: Path) -> FilesToPack:
    found = list_folder(folder)
    problems = [Problem(*problem) for problem in found.problems]
    return FilesToPack(folder, folder, found.names, found.paths, np.array(found.labels, np.int64), problems)


def _from_list(path: Path, gaps: Gaps) -> FilesToPack:
    read = _lst_entry if path.suffix == ".lst" else _entry
    entries = sorted((read(line, f"{path}: line {number}") for number, line in read_lines(path)), key=lambda e: e[0])
    if not entries:
        raise DataError(f"{path}: no image in the list")
    listed = np.array([label for label, _ in entries], np.int64)
    labels, names = numbered(listed, [str(label) for label in range(int(listed[-1]) + 1)], gaps, path)
    return FilesToPack(path.parent, path, names, [name for _, name in entries], labels, [])


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
