"""Verification sets (.bin) from image files and a list of pairs, and back. Faces are not aligned here: the images
must be, to the template of the training images.

Bytes of images are kept as they are, so a set taken apart and made again holds the same bytes in the same order; with
`resize` an image of another size becomes a JPEG of that size. Each image is decoded once: what cannot be decoded, or
has another size, is found now and not in the middle of an evaluation.
A folder of a set: `images/<place of the first use>.<suffix>`, each distinct image once, and `pairs.csv` (a,b,same).
Errors: `DataError` naming the list and line, the archive or the image. What is written appears complete or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from partialkd.data.archive import list_images, read_images
from partialkd.data.bins import read_bin, write_bin
from partialkd.data.decode import check_size, decode, encode_jpeg, to_pixels
from partialkd.data.pack import image_suffix
from partialkd.data.pair_lists import ListedPair
from partialkd.errors import DataError
from partialkd.files import refuse_existing, sync

PAIRS = "pairs.csv"


def build_bin(
    pairs: Sequence[ListedPair], images: Path, out: Path, image_size: int | None = 112, resize: bool = False
) -> int:
    """Write `out` from the images of a folder or .tar; returns the number of pairs. image_size: None, any."""
    images, out = Path(images), Path(out)
    refuse_existing(out)
    if not pairs:
        raise DataError(f"{out}: a set needs at least one pair")
    _check_present(pairs, images)
    paths = [path for pair in pairs for path in (pair.first, pair.second)]
    encoded = {path: _sized(data, image_size, resize, f"{images}/{path}") for path, data in _read(images, set(paths))}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bin(out, [encoded[path] for path in paths], [pair.same for pair in pairs])
    return len(pairs)


def extract_bin(path: Path, folder: Path) -> tuple[int, int]:
    """Write `folder`/images and pairs.csv; returns the numbers of distinct images and of pairs."""
    folder, found = Path(folder), read_bin(path)
    refuse_existing(folder)
    digits = len(str(len(found.images) - 1))
    names: dict[bytes, str] = {}
    for place, image in enumerate(found.images):
        suffix = image_suffix(image)
        if suffix is None:
            raise DataError(f"{path}: image {place}: not a known image format (starts with {image[:8]!r})")
        names.setdefault(image, f"images/{place:0{digits}d}{suffix}")
    rows = zip(found.images[0::2], found.images[1::2], found.same.tolist(), strict=True)
    lines = ["a,b,same", *(f"{names[first]},{names[second]},{same:d}" for first, second, same in rows)]
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        (partial / "images").mkdir(parents=True)
        for image, name in names.items():
            (partial / name).write_bytes(image)
        (partial / PAIRS).write_text("\n".join(lines) + "\n", encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(folder.parent)
    return len(names), len(found.same)


def _check_present(pairs: Sequence[ListedPair], images: Path) -> None:
    """Every path is a file of the folder, or of the archive, which holds `<identity>/<image>`."""
    known = None
    if not images.is_dir():
        known = {f"{identity}/{name}" for identity, names in list_images(images).items() for name in names}
    for pair in pairs:
        for path in (pair.first, pair.second):
            if not ((images / path).is_file() if known is None else path in known):
                raise DataError(f"{pair.where}: no image {path} in {images}")


def _read(images: Path, wanted: set[str]) -> Sequence[tuple[str, bytes]]:
    if not images.is_dir():
        return list(read_images(images, wanted))
    try:
        return [(path, (images / path).read_bytes()) for path in sorted(wanted)]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _sized(encoded: bytes, image_size: int | None, resize: bool, where: str) -> bytes:
    """The bytes as they are if the image has the right size."""
    pixels = decode(encoded, where)
    if image_size is None or pixels.shape[:2] == (image_size, image_size):
        return encoded
    if not resize:
        check_size(pixels, image_size, where)
    return encode_jpeg(to_pixels(pixels, image_size))
