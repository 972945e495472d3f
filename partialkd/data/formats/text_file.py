"""Read the text files that people write: lists of identities, images, pairs and class ids.

UTF-8 with or without a byte order mark, lines that end as on Unix, on Windows or on old Macs.
Errors: `DataError` naming the file, and the line whose bytes are not such text.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from partialkd.errors import DataError

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """Read the text of a file, without a byte order mark and with "\\n" at the end of each line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return decode_text(content, path)


def decode_text(content: bytes, path: Path) -> str:
    """Decode the bytes of a text file."""
    if content.startswith(_UTF_16):
        raise DataError(f"{path}: is text in UTF-16; save it as UTF-8")
    content = content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        rule = f"must be UTF-8 text, got byte {content[error.start]:#04x}"
        raise DataError(f"{path}: line {_line(content, error.start)}: {rule}") from error
    if (place := content.find(b"\0")) >= 0:
        raise DataError(f"{path}: line {_line(content, place)}: must be text, got a zero byte")
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a file that are not blank, with their numbers from 1 on."""
    return [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]


def _line(content: bytes, place: int) -> int:
    return content.count(b"\n", 0, place) + 1
