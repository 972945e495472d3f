"""Turn pictures upright as their EXIF orientation says, whatever their format.

Cameras write pixels as the sensor lies and note in EXIF how to turn them. OpenCV, MXNet and browsers obey the note, so
it is obeyed here too, in JPEG, PNG, WebP and TIFF alike. A note that cannot be read is no note.
Shapes: pixels (H, W, 3) or (H, W, 4) uint8.
Source: Exif 2.32 (CIPA DC-008), tag 0x0112; where it stands: JPEG segment APP1, PNG chunk eXIf, WebP chunk EXIF.
"""

from __future__ import annotations

import struct

import numpy as np

UPRIGHT = 1
_TAG = 0x0112
_EXIF = b"Exif\0\0"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that begin the description of a JPEG's pixels
_SEQUENTIAL = (0xC0, 0xC1)
_SHORT, _LONG = 3, 4  # types of a value in EXIF


def orientation(encoded: bytes) -> int:
    """Read the EXIF orientation 1..8 of an encoded image; 1 (upright) where there is none."""
    if encoded[:2] == b"\xff\xd8":
        return jpeg_head(encoded)[0]
    if encoded[:4] == b"\x89PNG":
        return _of_chunks(encoded, 8, ">I4s", (1, 0), 4, b"eXIf") if b"eXIf" in encoded else UPRIGHT
    if encoded[:4] == b"RIFF":
        return _of_chunks(encoded, 12, "<4sI", (0, 1), 0, b"EXIF") if b"EXIF" in encoded else UPRIGHT
    return _of_exif(encoded)  # a TIFF begins as an EXIF block does


def turned(pixels: np.ndarray, how: int) -> np.ndarray:
    """Turn a picture upright, given its EXIF orientation; the same array where it is so already."""
    if how == UPRIGHT:
        return pixels
    if how in (5, 6, 7, 8):  # stored by columns
        pixels = pixels.transpose(1, 0, 2)
    if how in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if how in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def upright_size(width: int, height: int, how: int) -> tuple[int, int]:
    """Tell width and height after turning."""
    return (height, width) if how in (5, 6, 7, 8) else (width, height)


def jpeg_head(encoded: bytes) -> tuple[int, bool]:
    """Read of a JPEG its EXIF orientation, and whether its pixels lie in one scan."""
    how, frame, components, at = None, 0, 0, 2
    while at + 10 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            return how or UPRIGHT, frame in _SEQUENTIAL and encoded[at + 4] == components
        end = at + 2 + (encoded[at + 2] << 8 | encoded[at + 3])
        if marker == 0xE1 and how is None and encoded[at + 4 : at + 10] == _EXIF:
            how = _of_exif(encoded[at + 10 : end])
        elif marker in _FRAMES:
            frame, components = marker, encoded[at + 9]
        at = end
    return how or UPRIGHT, False


def _of_chunks(encoded: bytes, at: int, head: str, order: tuple[int, int], checksum: int, wanted: bytes) -> int:
    """Read it from the chunk `wanted` of a PNG or WebP. order: where name and length stand in a chunk's head."""
    while at + 8 <= len(encoded):
        fields = struct.unpack_from(head, encoded, at)
        name, length = fields[order[0]], fields[order[1]]
        if name == wanted:
            return _of_exif(encoded[at + 8 : at + 8 + length].removeprefix(_EXIF))
        at += 8 + length + (checksum or length % 2)
    return UPRIGHT


def _of_exif(block: bytes) -> int:
    """Read it from an EXIF block: a TIFF header and its first directory."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 10:
        return UPRIGHT
    (directory,) = struct.unpack_from(f"{order}I", block, 4)
    if directory + 2 > len(block):
        return UPRIGHT
    (count,) = struct.unpack_from(f"{order}H", block, directory)
    for at in range(directory + 2, min(directory + 2 + 12 * count, len(block) - 11), 12):
        tag, kind = struct.unpack_from(f"{order}HH", block, at)
        if tag == _TAG and kind in (_SHORT, _LONG):
            (how,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), block, at + 8)
            return how if 1 <= how <= 8 else UPRIGHT
    return UPRIGHT
