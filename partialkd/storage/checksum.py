"""The checksum of everything this package writes and later believes: CRC-32, as zlib, PNG and gzip have it.

It finds damage, not forgery; it runs at about 1 GB/s a core, about twice as fast as SHA-256.
"""

from __future__ import annotations

import zlib
from pathlib import Path

PIECE_BYTES = 1 << 24  # summed in one go


def crc32(data: bytes | bytearray | memoryview, before: int = 0) -> int:
    """The checksum of `data`, going on from that of what came before it."""
    return zlib.crc32(data, before)


def hexadecimal(total: int) -> str:
    """A checksum as files hold it: eight hexadecimal digits."""
    return f"{total:08x}"


def crc32_of_file(path: Path) -> int:
    """The checksum of a whole file, a piece at a time: it may be larger than the memory."""
    total = 0
    with path.open("rb", buffering=0) as stream:
        while piece := stream.read(PIECE_BYTES):
            total = crc32(piece, total)
    return total
