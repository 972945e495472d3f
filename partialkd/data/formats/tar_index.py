"""List the files of a tar archive that is not compressed, with the places of their bytes, by reading its headers alone.

For archives that are read at any place afterwards (`tar_stream.py` reads any archive in its order). Knows ustar, pax
(paths and sizes of single members) and GNU's long names and large sizes; folders are passed over. The end mark, a block
of zeros, must be there: without it a file that was cut between two members would look whole.
Errors: `DataError` with the archive and the byte: compressed, cut short, a header that is damaged, a member that is no
file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from partialkd.errors import DataError
from partialkd.storage.open_file import OpenFile

BLOCK = 512
_MOST_EXTENDED = 1 << 20  # bytes of a pax header or a long name
_FILES, _FOLDER, _LONG_NAME, _PAX, _GLOBAL = b"\0" + b"07", b"5", b"L", b"x", b"g"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7z": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_PAX_LINE = re.compile(rb"([0-9]{1,7}) ([^=]+)=")


class Member(NamedTuple):
    """A file of an archive."""

    name: str
    offset: int  # of its first byte
    size: int


def list_members(file: OpenFile) -> Iterator[Member]:
    """List the files of an archive, in its order."""
    at, name, size = 0, None, None  # the last two: what an extended header says of the member behind it
    while True:
        header = file.bytes_at(at, BLOCK)
        if len(header) < BLOCK:
            _refuse_start(file, at)
            raise DataError(f"{file.path}: is cut short: no end mark of a tar archive after {file.size} bytes")
        if not header.strip(b"\0"):
            return
        kind, length = header[156:157], _length(header, file, at)
        start, at = at + BLOCK, at + BLOCK + -(-length // BLOCK) * BLOCK
        if kind in (_LONG_NAME, _PAX):
            found_name, found_size = _extended(kind, _content(file, start, length))
            name, size = found_name or name, found_size if found_size is not None else size
            continue
        if size is not None:
            length, at = size, start + -(-size // BLOCK) * BLOCK
        if kind in (_FOLDER, _GLOBAL):
            name, size = None, None
            continue
        member = Member(name or _name(header), start, length)
        if kind not in _FILES:
            raise DataError(f"{file.path}: {member.name}: is no file but of type {kind.decode('latin-1')!r}")
        if start + length > file.size:
            raise DataError(f"{file.path}: {member.name}: is cut short: the archive has {file.size} bytes")
        yield member
        name, size = None, None


def _refuse_start(file: OpenFile, at: int) -> None:
    if at == 0:
        _refuse_compressed(file, file.bytes_at(0, BLOCK))


def _refuse_compressed(file: OpenFile, start: bytes) -> None:
    for mark, how in _COMPRESSED.items():
        if start.startswith(mark):
            rule = "cannot be read at any place; decompress it"
            raise DataError(f"{file.path}: is compressed ({how}), and {rule}")


def _length(header: bytes, file: OpenFile, at: int) -> int:
    """Read the bytes of a member's content from its header, whose checksum must be right."""
    try:
        if int(header[148:156].strip(b"\0 "), 8) != sum(header) - sum(header[148:156]) + 256:
            raise ValueError("its checksum is wrong")
        field = header[124:136]
        if field[0] & 0x80:  # GNU: a binary number
            return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError as error:
        if at == 0:
            _refuse_compressed(file, header)
        what = "not a tar archive" if at == 0 else f"damaged: no header of a tar archive at byte {at}"
        raise DataError(f"{file.path}: {what}") from error


def _content(file: OpenFile, start: int, length: int) -> bytes:
    content = file.bytes_at(start, min(length, _MOST_EXTENDED))
    if len(content) < length:
        rule = f"at most {_MOST_EXTENDED} bytes, or is cut short"
        raise DataError(f"{file.path}: an extended header at byte {start} has {rule}; it says {length}")
    return content


def _extended(kind: bytes, content: bytes) -> tuple[str | None, int | None]:
    """Read what an extended header says of the next member: its name, its size."""
    if kind == _LONG_NAME:
        return _text(content), None
    name, size, at = None, None, 0
    while match := _PAX_LINE.match(content, at):
        value = content[match.end() : at + int(match[1]) - 1]
        if match[2] == b"path":
            name = _text(value)
        elif match[2] == b"size" and value.isdigit():
            size = int(value)
        at += max(int(match[1]), 1)
    return name, size


def _name(header: bytes) -> str:
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(header[:100])}" if prefix else _text(header[:100])


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")
