"""Build verification sets (.bin) from image files and a list of pairs, or from arrays; and take them apart.

Faces are not aligned here: the images must be, to the template of the training images.

Bytes of images are kept as they are, so a set taken apart and made again holds the same bytes in the same order; but
what EXIF says to turn is turned and encoded anew, and with `resize` an image of another size becomes a JPEG of that
size. Each image is decoded once: what cannot be decoded, is not square or has another size, is found now and not in the
middle of an evaluation.
A folder of a set: `images/<place of the first use>.<suffix>` and `pairs.csv` (a,b,same). Each distinct image is there
once, and again where a pair of two equal images, or one that the set holds twice, would else be a mistake in the list.
Errors: `DataError` naming the list and line, the archive or the image. What is written appears complete or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from partialkd.data.formats.image_tree import list_images, read_file, read_images
from partialkd.data.formats.pair_lists import ListedPair
from partialkd.data.formats.pixel_arrays import PixelArray, read_answers
from partialkd.data.formats.verification_bin import VerificationSet, read_bin, write_bin
from partialkd.data.images.decode import Wanted, image_suffix
from partialkd.data.images.encode import encode_png, sized
from partialkd.data.ordered_threads import in_order
from partialkd.errors import ConfigError, DataError
from partialkd.storage.atomic_files import new_folder, refuse_existing
from partialkd.world.passes import Pass, counted

PAIRS = "pairs.csv"
MIN_SIZE, MAX_SIZE = 16, 512  # pixels per side, as data.image_size


def build_bin(
    pairs: Sequence[ListedPair], images: Path, out: Path, image_size: int | None = 112, resize: bool = False
) -> int:
    """Write `out` from the images of a folder or .tar; returns the number of pairs. image_size: None, any."""
    images, out = Path(images), Path(out)
    refuse_existing(out)
    if image_size is not None and not MIN_SIZE <= image_size <= MAX_SIZE:
        raise ConfigError(f"--image-size must be in {MIN_SIZE}..{MAX_SIZE}, got {image_size}")
    if not pairs:
        raise DataError(f"{out}: a set needs at least one pair")
    _check_present(pairs, images)
    paths = [path for pair in pairs for path in (pair.first, pair.second)]
    wanted = Wanted(image_size, resize, "--resize")
    read = counted(_read(images, set(paths)), "reading the pairs", len(set(paths)), "images")
    encoded = {path: sized(data, f"{images}/{path}", wanted) for path, data in read}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bin(out, [encoded[path] for path in paths], [pair.same for pair in pairs])
    return len(pairs)


def build_from_pixels(answers: Path, images: Path, out: Path, bgr: bool | None = None, workers: int = 2) -> int:
    """Write `out` from an array of pixels (pixel_arrays.py), each image as PNG -> the number of pairs."""
    out = Path(out)
    refuse_existing(out)
    same, pixels = read_answers(Path(answers)), PixelArray(images, bgr)
    if len(pixels) != 2 * len(same):
        raise DataError(f"{pixels.path}: holds {len(pixels)} images, {answers} answers for {len(same)} pairs")
    encode = lambda index: encode_png(pixels.pixels(index))
    encoded = counted(in_order(encode, range(len(pixels)), workers, 64), "writing PNG", len(pixels), "images")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bin(out, [image for _, image in encoded], same)
    return len(same)


def extract_bin(path: Path, folder: Path) -> tuple[int, int]:
    """Write `folder`/images and pairs.csv; returns the numbers of images written and of pairs."""
    with Pass(f"reading {Path(path).name}"):
        folder, found = Path(folder), read_bin(path)
    refuse_existing(folder)
    files, lines = _files_and_lines(found, path)
    with new_folder(folder) as hidden:
        (hidden / "images").mkdir()
        for name, image in counted(files.items(), "writing images", len(files), "images"):
            (hidden / name).write_bytes(image)
        (hidden / PAIRS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(files), len(found.same)


def _files_and_lines(found: VerificationSet, path: Path) -> tuple[dict[str, bytes], list[str]]:
    """Choose names: name -> image, and the lines of pairs.csv."""
    digits = len(str(len(found.images) - 1))
    files: dict[str, bytes] = {}
    names: dict[bytes, str] = {}
    lines, seen = ["a,b,same"], set()
    for pair, same in enumerate(found.same.tolist()):
        own = [_file_name(found.images[at], at, digits, path) for at in (2 * pair, 2 * pair + 1)]
        images = found.images[2 * pair : 2 * pair + 2]
        first, second = (names.setdefault(image, name) for image, name in zip(images, own, strict=True))
        if first == second or frozenset((first, second)) in seen:
            second = own[1]  # a copy, so that no line repeats another or pairs a file with itself
        seen.add(frozenset((first, second)))
        files |= {first: images[0], second: images[1]}
        lines.append(f"{first},{second},{same:d}")
    return files, lines


def _file_name(image: bytes, place: int, digits: int, path: Path) -> str:
    suffix = image_suffix(image)
    if suffix is None:
        raise DataError(f"{path}: image {place}: not a known image format (starts with {image[:8]!r})")
    return f"images/{place:0{digits}d}{suffix}"


def _check_present(pairs: Sequence[ListedPair], images: Path) -> None:
    """Raise DataError unless every path is a file of the folder, or an `<identity>/<image>` of the archive."""
    known = None
    if not os.path.isdir(images):
        known = {f"{identity}/{name}" for identity, names in list_images(images).items() for name in names}
    for pair in pairs:
        for path in (pair.first, pair.second):
            if not (os.path.isfile(images / path) if known is None else path in known):
                raise DataError(f"{pair.where}: no image {path} in {images}")


def _read(images: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Read encoded images by path, of a folder in any shape or of an archive."""
    if not os.path.isdir(images):
        yield from read_images(images, wanted)
        return
    for path in sorted(wanted):
        try:
            encoded = read_file(images / path)
        except OSError as error:
            raise DataError(f"{images}/{path}: cannot be read: {error.strerror}") from error
        yield path, encoded
