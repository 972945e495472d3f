"""Read the .lst files of MXNet's im2rec: a line `number<TAB>label<TAB>...<TAB>path` for each image.

The number is the image's key in the .rec. Labels are written as floating-point numbers; of several the first is the
class id.
Errors: `DataError` with file and line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from partialkd.data.formats.property_file import MAX_CLASSES
from partialkd.data.formats.text_file import read_lines
from partialkd.errors import DataError


class ListedImage(NamedTuple):
    """A line of a .lst."""

    key: int
    label: int
    path: str


def read_lst(path: Path) -> Iterator[ListedImage]:
    """Read the lines of a .lst, in its order."""
    return (parse_line(line, f"{path}: line {number}") for number, line in read_lines(path))


def parse_line(line: str, where: str) -> ListedImage:
    """Read one line; `where` names it."""
    fields = line.split("\t")
    try:
        key, label = int(fields[0]), float(fields[1])
        if len(fields) < 3 or key < 0 or not fields[-1].strip():
            raise ValueError
    except (ValueError, IndexError):
        raise DataError(f"{where}: must be number<TAB>label<TAB>path, got {line[:120]!r}") from None
    if not (0 <= label < MAX_CLASSES and label == int(label)):
        raise DataError(f"{where}: label must be an integer in [0, {MAX_CLASSES}), got {fields[1].strip()}")
    return ListedImage(key, int(label), fields[-1].strip())
