"""Bytes of images that are wrong or odd, of 32 x 32 pixels where nothing else is said."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from partialkd.data.images.encode import encode_jpeg

SIZE = 32


def picture(number: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encoded(form: str, mode: str = "RGB", size: int = SIZE, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(0, size)).convert(mode).save(file, form, **options)
    return file.getvalue()


def lying(number: int, how: int, form: str = "JPEG") -> bytes:
    """A picture with a note in EXIF on how to turn it."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = how
    Image.fromarray(picture(number)).save(file, form, exif=exif)
    return file.getvalue()


def oblong(height: int, width: int) -> bytes:
    return encode_jpeg(np.zeros((height, width, 3), np.uint8))


def many_scans(count: int, side: int = SIZE) -> bytes:
    """A valid progressive JPEG, grey all over, in at most 896 scans: coefficient by coefficient, bit by bit."""
    segment = lambda marker, content: b"\xff" + marker + struct.pack(">H", len(content) + 2) + content
    table = bytes([1, *[0] * 15, 0])  # one code of one bit: nothing follows
    jpeg = b"\xff\xd8" + segment(b"\xdb", b"\0" + b"\1" * 64) + segment(b"\xc4", b"\0" + table + b"\x10" + table)
    jpeg += segment(b"\xc2", b"\x08" + struct.pack(">HH", side, side) + b"\1\1\x11\0")
    coefficients = ((at, bit) for at in range(64) for bit in range(13, -1, -1))
    for (at, bit), _ in zip(coefficients, range(count), strict=False):
        before = 0 if bit == 13 else bit + 1
        jpeg += segment(b"\xda", bytes([1, 1, 0, at, at, before << 4 | bit])) + bytes((((side + 7) // 8) ** 2 + 7) // 8)
    return jpeg + b"\xff\xd9"


def animated(form: str) -> bytes:
    return encoded(form, save_all=True, append_images=[Image.fromarray(picture(1))])


def png(width: int, height: int, data: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    chunks = (head, *extra, (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    body = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def sized_jpeg(side: int) -> bytes:
    """A JPEG of SIZE x SIZE pixels whose header says another size."""
    jpeg = encoded("JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", side, side) + jpeg[at + 4 :]


def damaged_middle() -> bytes:
    jpeg = encoded("JPEG", quality=95)
    return jpeg[: len(jpeg) // 2] + bytes(30) + jpeg[len(jpeg) // 2 + 30 :]


def deep() -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(0)[..., 0].astype(np.uint16) * 257).save(file, "PNG")
    return file.getvalue()


def transparent() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.dstack([picture(0), picture(1)[..., 0]])).save(file, "PNG")
    return file.getvalue()
