"""Turn encoded images into the tensor every network sees: one decoder, one resize, one normalisation.

`decode`: bytes -> (H, W, 3) uint8 RGB. JPEG by libjpeg-turbo with its exact DCT (pixels equal Pillow's), PNG, BMP,
WebP and TIFF by Pillow. Turned upright as EXIF says (orientation.py). Grey is repeated on three channels, CMYK
converted, an opaque alpha channel dropped; transparency, 16 bits a channel, animations, more than 64 megapixels and
JPEG of very many scans are errors. What the header says is checked before a pixel is decoded.
`to_tensor`: images -> (b, 3, S, S) float32, (pixel - 127.5) / 127.5. Resize, grey, mirror and normalisation happen
there, on the device, so that all loaders agree. On the CPU it is NumPy that does it, one image at a time while that is
in the cache: torch's threads would get in the way of those that decode.
Errors: `DataError` naming `where`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from partialkd.data.images.carry import carry
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
_GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, that of JPEG and of Pillow's "L"
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


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """Encode (H, W, 3) uint8 RGB as JPEG without chroma subsampling."""
    pixels = np.ascontiguousarray(image)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="444"))


def to_tensor(
    images: Sequence[np.ndarray] | np.ndarray | Tensor,
    image_size: int,
    flips: np.ndarray | None = None,
    grey: np.ndarray | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Bring b images (H, W, 3) or (H, W, 4) uint8 of any sizes to (b, 3, S, S) float32 on `device`, S = image_size.

    Of four channels the last is not looked at. flips (b,) bool: mirror these. grey (b,) bool: replace the channels of
    these by their luma. An image of another size is resized (`decode` refuses it where that is not wanted), each by
    itself: no result depends on the batch.
    """
    device, none = torch.device(device), np.zeros(len(images), dtype=bool)
    flips, grey = none if flips is None else flips, none if grey is None else grey
    if device.type == "cpu":
        planes = np.empty((len(images), 3, image_size, image_size), dtype=np.float32)
        for image, plane, flip, turn_grey in zip(images, planes, flips.tolist(), grey.tolist(), strict=True):
            write_planes(np.asarray(image), plane, flip, turn_grey)
        return torch.from_numpy(planes)
    rows = carry(rows_of(flips, grey), device)
    return normalised(stacked(images, image_size, device), rows)


FLIPPED, GREY = "flipped", "grey"


def rows_of(flips: np.ndarray, grey: np.ndarray) -> dict[str, np.ndarray]:
    """Say which images are to be mirrored and made grey, for `normalised`: flips (b,) bool, grey (b,) bool."""
    chosen = {FLIPPED: np.flatnonzero(flips), GREY: np.flatnonzero(grey)}
    return {name: rows for name, rows in chosen.items() if len(rows)}


def normalised(pixels: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
    """Make grey, mirror and normalise pixels (b, 3, S, S) float32 in place. rows: `rows_of`, on their device."""
    pixels = made_grey(pixels, rows)
    if FLIPPED in rows:
        pixels[rows[FLIPPED]] = pixels[rows[FLIPPED]].flip(3)
    return pixels.sub_(127.5).div_(127.5)


def made_grey(pixels: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
    """Make these rows of pixels (b, 3, S, S) float32 grey in place, and do nothing else of `normalised`."""
    if GREY in rows:
        pixels[rows[GREY]] = to_grey(pixels[rows[GREY]])
    return pixels


def write_planes(image: np.ndarray, planes: np.ndarray, flip: bool, grey: bool) -> None:
    """Do all of `to_tensor` for one image, into `planes` (3, S, S) float32: one thread, no torch but for a resize."""
    if image.shape[:2] == planes.shape[1:]:
        np.copyto(planes, image[:, :: -1 if flip else 1, :3].transpose(2, 0, 1))
    else:
        resized = resize(_planes(torch.from_numpy(image)[None], torch.device("cpu")), planes.shape[1])[0].numpy()
        np.copyto(planes, resized[:, :, :: -1 if flip else 1])
    if grey:
        red, green, blue = (plane * np.float32(weight) for plane, weight in zip(planes, _GREY, strict=True))
        planes[:] = red + green + blue
    planes -= np.float32(127.5)
    planes /= np.float32(127.5)


def stacked(images: Sequence[np.ndarray] | np.ndarray | Tensor, image_size: int, device: torch.device) -> Tensor:
    """Stack images as a new (b, 3, S, S) float32 tensor of pixels 0..255."""
    if len(images) == 0:
        return torch.empty((0, 3, image_size, image_size), device=device)
    if not isinstance(images, np.ndarray | Tensor) and len({image.shape for image in images}) == 1:
        images = np.stack(images)
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    if isinstance(images, Tensor):
        return resize(_planes(images, device), image_size)
    return torch.cat([resize(_planes(torch.from_numpy(image)[None], device), image_size) for image in images])


def _planes(images: Tensor, device: torch.device) -> Tensor:
    """Bring (b, H, W, 3 or 4) uint8 to new contiguous (b, 3, H, W) float32; bytes travel to the device, not floats."""
    planes = images.to(device, non_blocking=True)[..., :3].permute(0, 3, 1, 2)
    return planes.to(torch.float32, memory_format=torch.contiguous_format)


def resize(pixels: Tensor, image_size: int) -> Tensor:
    """Resize (b, 3, H, W) float32 to (b, 3, S, S), bilinear with antialiasing; the same tensor if nothing is to do."""
    if tuple(pixels.shape[2:]) == (image_size, image_size):
        return pixels
    return interpolate(pixels, size=(image_size, image_size), mode="bilinear", antialias=True, align_corners=False)


def to_grey(pixels: Tensor) -> Tensor:
    """Put the luma of (b, 3, H, W) on all three channels."""
    return (pixels * _luma(pixels.device, pixels.dtype)).sum(1, keepdim=True).expand_as(pixels)


@cache
def _luma(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Weights of the channels (1, 3, 1, 1); once per device, for every copy to one is waited for."""
    return torch.tensor(_GREY, device=device, dtype=dtype).view(1, 3, 1, 1)


def to_pixels(image: np.ndarray, image_size: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (S, S, 3) uint8 as `to_tensor` does, rounded."""
    resized = resize(_planes(torch.from_numpy(image)[None], torch.device("cpu")), image_size)
    return resized[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def sized(encoded: bytes, where: str, wanted: Wanted) -> bytes:
    """Return the bytes as they are if the image is upright and has the size wanted, else encoded anew."""
    pixels = decode(encoded, where, wanted=wanted)
    if wanted.image_size is not None and pixels.shape[0] != wanted.image_size:
        return encode_jpeg(to_pixels(pixels, wanted.image_size))
    return encoded if orientation(encoded) == UPRIGHT else encode_upright(encoded, pixels)


def encode_upright(encoded: bytes, pixels: np.ndarray) -> bytes:
    """Encode the upright pixels of an image: as JPEG if it was one, else as PNG."""
    return encode_jpeg(pixels) if encoded[:2] == JPEG else encode_png(pixels)


def encode_png(image: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 RGB as PNG, which loses nothing."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    return png.getvalue()


def image_suffix(encoded: bytes) -> str | None:
    """Tell ".jpg", ".png" ... by the first bytes; None: not a known image format."""
    return next((suffix for magic, suffix in _MAGICS if encoded.startswith(magic)), None)
