"""Encode pixels (H, W, 3) uint8 RGB: as JPEG, as PNG, or as they came where nothing has to change."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image

from partialkd.data.images.decode import JPEG, Wanted, decode
from partialkd.data.images.orientation import UPRIGHT, orientation
from partialkd.data.images.tensors import to_pixels


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """Encode (H, W, 3) uint8 RGB as JPEG without chroma subsampling."""
    pixels = np.ascontiguousarray(image)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="444"))


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
