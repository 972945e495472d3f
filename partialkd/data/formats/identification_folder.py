"""Read a set for identification: whose faces are looked for, among whom, and with which distractors.

    FOLDER/probes/<subject>/<image>       or <subject>_<anything>.<suffix> beside each other, as in TinyFace
           gallery/<subject>/<image>      enrolled faces; without it each probe is looked for by its others (MegaFace)
           distractors/.../<image>        faces of nobody's that stand between them; none are needed with a gallery
           noisy.txt                      paths below FOLDER that are left out, one a line (lines with # are remarks)

`noisy.txt` has the names of InsightFace's published lists as well: an entry counts where it is the end of a path.
Errors: `DataError` naming the folder, or the line of the list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from partialkd.data.formats.text_file import read_lines
from partialkd.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
NOISY = "noisy.txt"


@dataclass(frozen=True)
class IdentificationSet:
    """Images of one set: probes first, then the gallery, then distractors; -1 is the subject of a distractor."""

    folder: Path
    names: Sequence[str]
    subjects: np.ndarray  # (n,) int64
    probes: int
    gallery: int
    noisy: int  # images left out
    stored: Callable[[int], bytes] | None = None  # reads an image that is no file of its own

    @property
    def distractors(self) -> int:
        """How many there are."""
        return len(self.names) - self.probes - self.gallery


def read_identification_set(folder: Path) -> IdentificationSet:
    """List the images of a set."""
    folder = Path(folder)
    if not (folder / "probes").is_dir():
        raise DataError(f"{folder}: not a set for identification: no folder probes in it")
    noisy = _Noisy(folder)
    probes, gallery, distractors = (
        [name for name in _images(folder, part) if not noisy.has(name)] for part in ("probes", "gallery", "distractors")
    )
    if not probes:
        raise DataError(f"{folder / 'probes'}: no images in it")
    if not gallery and not distractors:
        raise DataError(f"{folder}: neither a gallery nor distractors: there is nothing to look through")
    noisy.check()
    named = [_subject(name) for name in probes + gallery]
    number = {name: at for at, name in enumerate(sorted(set(named)))}
    subjects = np.array([number[name] for name in named] + [-1] * len(distractors), dtype=np.int64)
    return IdentificationSet(folder, probes + gallery + distractors, subjects, len(probes), len(gallery), noisy.count)


def _images(folder: Path, part: str) -> Iterator[str]:
    """Paths below `folder`, in the order of their bytes."""
    for place, folders, names in os.walk(folder / part):
        folders.sort()
        below = Path(place).relative_to(folder)
        yield from (f"{below}/{name}" for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES)


def _subject(name: str) -> str:
    """Whose face probes/<subject>/<image>, or probes/<subject>_<anything>, is."""
    parts = name.split("/")[1:]
    return parts[0] if len(parts) > 1 else parts[0].rpartition(".")[0].partition("_")[0]


class _Noisy:
    """The list of what is left out."""

    def __init__(self, folder: Path) -> None:
        self.path, self.count = folder / NOISY, 0
        lines = read_lines(self.path) if self.path.exists() else []
        entries = ((number, line.strip().split("\t")[-1]) for number, line in lines if not line.startswith("#"))
        self._entries = {entry.removeprefix("./"): number for number, entry in entries}
        self._found: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether an image stands in the list, by its whole path or by an end of it."""
        parts = name.split("/")
        for at in range(len(parts)):
            if (end := "/".join(parts[at:])) in self._entries:
                self._found.add(end)
                self.count += 1
                return True
        return False

    def check(self) -> None:
        """DataError for a list of which nothing is there."""
        if self._entries and not self._found:
            first = next(iter(self._entries))
            raise DataError(f"{self.path}: line {self._entries[first]}: no image {first}, nor any other of the list")
