"""Decode images: one decoder for all that is read.

`decode`: bytes -> (H, W, 3) uint8 RGB. JPEG by libjpeg-turbo with its exact DCT (pixels equal Pillow's), PNG, BMP,
WebP and TIFF by Pillow. Turned upright as EXIF says (orientation.py). Grey is repeated on three channels, CMYK
converted, an opaque alpha channel dropped; transparency, 16 bits a channel, animations, more than 64 megapixels and
JPEG of very many scans are errors. What the header says is checked before a pixel is decoded.
Errors: `DataError` naming `where`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from partialkd.data.images.orientation import UPRIGHT, jpeg_head, orientation, turned, upright_size
from partialkd.errors import DataError, Where

DECODING = 2  # raised whenever an image gets other pixels (1: EXIF orientation ignored): caches of the old are refused
MAX_PIXELS = 1 << 26
MAX_SCANS = 100  # of a JPEG; usual are 1 to 12. Each is a pass over all pixels, whatever its length
MAX_SCANNED = 1 << 30  # pixels times scans
RESIZE = "data.resize = true"  # in the configuration of a run
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")  # not the formats Pillow hands to other programs
JPEG = b"\xff\xd8"  # how these files begin
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_MAGICS = (
    (JPEG, ".jpg"),
    (b"\x89PNG", ".png"),
    (b"BM", ".bmp"),
    (b"RIFF", ".webp"),
    (b"II", ".tif"),
    (b"MM", ".tif"),
)


@dataclass(frozen=True)
class Wanted:
    """Says which sizes of images are taken."""

    image_size: int | None  # pixels per side; None: any square
    resize: bool = False  # other squares too, which are resized later
    option: str = RESIZE  # what the user can give to have them resized

    def check(self, width: int, height: int, where: str | Where) -> None:
        """Raise DataError for another size, and for what is not square: resizing would squeeze the face."""
        if width != height:
            rule = "must be square (docs/data.md says how faces are aligned; they are not squeezed)"
            raise DataError(f"{where}: {rule}, got {width} x {height}")
        size = self.image_size
        if not self.resize and size is not None and width != size:
            rule = f"must be {size} x {size} pixels ({self.option} brings every image to that size)"
            raise DataError(f"{where}: {rule}, got {width} x {height}")


def decode(
    encoded: bytes, where: str | Where, out: np.ndarray | None = None, wanted: Wanted | None = None
) -> np.ndarray:
    """Decode an image -> (H, W, 3) uint8 RGB, upright, writable.

    An image of the size of `out` (H, W, 4) uint8 is written there, and the result is a view of it. Four bytes per
    pixel, the last one unused, are a sixth faster to decode than three, and need no copy to make a batch.
    """
    if encoded[:2] != JPEG:
        return _copied(_decode_pillow(encoded, where, wanted), out)
    width, height, space, how = check_jpeg(encoded, where, wanted)
    if space in ("CMYK", "YCCK"):  # libjpeg-turbo leaves these as they are
        return _copied(_decode_pillow(encoded, where, wanted), out)
    try:
        if how != UPRIGHT or out is None or out.shape[:2] != (height, width):
            return _copied(turned(np.asarray(simplejpeg.decode_jpeg(encoded, colorspace="RGB")), how), out)
        pixels = simplejpeg.decode_jpeg(encoded, colorspace="RGBX", buffer=out)
        return np.asarray(pixels)[..., :3]
    except ValueError as error:
        raise DataError(f"{where}: broken JPEG: {error}") from error


class JpegHeader(NamedTuple):
    """Holds what a JPEG says before its pixels."""

    width: int  # upright
    height: int
    colour_space: str
    orientation: int


def check_jpeg(encoded: bytes, where: str | Where, wanted: Wanted | None = None) -> JpegHeader:
    """Read the header of a JPEG and refuse what takes too long to decode; needs a hundredth of the decoder's time."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError as error:
        raise DataError(f"{where}: broken JPEG: {error}") from error
    _check_pixels(width, height, where)
    how, one_scan = jpeg_head(encoded)
    width, height = upright_size(width, height, how)
    if wanted is not None:
        wanted.check(width, height, where)
    most = min(MAX_SCANS, MAX_SCANNED // max(width * height, 1))
    if not one_scan and (scans := encoded.count(b"\xff\xda")) > most:
        raise DataError(f"{where}: a JPEG of {width} x {height} pixels has at most {most} scans, got {scans}")
    return JpegHeader(width, height, space, how)


def image_size(encoded: bytes, where: str | Where) -> tuple[int, int]:
    """Read width and height upright, by the header."""
    if encoded[:2] == JPEG:
        return check_jpeg(encoded, where)[:2]
    with _opened(encoded, where, None) as (image, how):
        return upright_size(*image.size, how)


def check_head(encoded: bytes, where: str | Where, wanted: Wanted | None = None) -> None:
    """DataError for an image that its header says cannot be used; pixels are not decoded."""
    if encoded[:2] == JPEG:
        check_jpeg(encoded, where, wanted)
        return
    with _opened(encoded, where, wanted):
        pass


def _copied(image: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    if out is None or out.shape[:2] != image.shape[:2]:
        return image
    out[..., :3] = image
    return out[..., :3]


def _decode_pillow(encoded: bytes, where: str | Where, wanted: Wanted | None) -> np.ndarray:
    with _opened(encoded, where, wanted) as (image, how):
        if not image.has_transparency_data:
            return turned(np.array(image.convert("RGB")), how)
        with_alpha = image.convert("RGBA")
        if with_alpha.getchannel("A").getextrema() != (255, 255):
            raise DataError(f"{where}: the image has transparent pixels")
        return turned(np.array(with_alpha.convert("RGB")), how)


@contextmanager
def _opened(encoded: bytes, where: str | Where, wanted: Wanted | None) -> Iterator[tuple[Image.Image, int]]:
    """Open an image, check its header, say how to turn it; what is wrong with it later is a DataError too."""
    if not encoded:
        raise DataError(f"{where}: the image is empty")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            _check_pixels(*image.size, where)
            how = UPRIGHT if image.format == "TIFF" else orientation(encoded)  # Pillow turns TIFF by itself
            if wanted is not None:
                wanted.check(*upright_size(*image.size, how), where)
            halved = _loses_bits(image)
            if _several(image) or halved or image.mode in _DEEP_MODES:
                what = f"{image.format} mode {image.mode}{' of 16 bits' if halved else ''}"
                raise DataError(f"{where}: must be one image of 8 bits a channel, got {what}")
            yield image, how
    except UnidentifiedImageError as error:
        raise DataError(f"{where}: not an image of {', '.join(FORMATS)} (starts with {encoded[:8]!r})") from error
    except DataError:
        raise
    except Exception as error:  # damaged files raise many kinds in Pillow, TypeError and KeyError among them
        raise DataError(f"{where}: broken image: {error or type(error).__name__}") from error


def _loses_bits(image: Image.Image) -> bool:
    """Say whether Pillow would drop, without a word, the lower half of 16 bits a channel."""
    return image.mode not in _DEEP_MODES and any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))


def _several(image: Image.Image) -> bool:
    """Say whether there is a second frame. Counting them all could take a hostile file's own time."""
    try:
        image.seek(1)
    except EOFError:
        image.seek(0)
        return False
    return True


def _check_pixels(width: int, height: int, where: str | Where) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"{where}: an image has at most {MAX_PIXELS} pixels, got {width} x {height}")


def image_suffix(encoded: bytes) -> str | None:
    """Tell ".jpg", ".png" ... by the first bytes; None: not a known image format."""
    return next((suffix for magic, suffix in _MAGICS if encoded.startswith(magic)), None)
