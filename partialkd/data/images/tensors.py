"""Turn decoded images into the tensor every network sees: one resize, one grey, one normalisation.

`to_tensor`: images -> (b, 3, S, S) float32, (pixel - 127.5) / 127.5. Resize, grey, mirror and normalisation happen
here, on the device, so that all loaders agree. On the CPU it is NumPy that does it, one image at a time while that is
in the cache: torch's threads would get in the way of those that decode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from partialkd.data.images.carry import carry

_GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, that of JPEG and of Pillow's "L"


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
