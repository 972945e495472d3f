"""Read verification sets kept as arrays of pixels, and the answers beside them.

Images (2n, 3, H, W) or (2n, H, W, 3), 2k and 2k + 1 are pair k: a `.npy`, a memory map `mem_file.dat` with its shape
and type in `mem_file.dat.conf` (AdaFace), or a folder with one of them in it. uint8 is RGB from 0 to 255 (HaiyuWu's);
floats are BGR from -1 to 1 (those of InsightFace_Pytorch, face.evoLVe and AdaFace): (x + 1) 127.5 is the pixel.
Answers: a `.npy` (`lfw_list.npy`) of truths, or text with a 0 or 1 in each line (`issame.txt`).
The folders of bcolz (`meta/sizes`) are compressed by a library that is no longer made; they are refused, saying how to
convert them. Arrays of Python objects are pickles, and are not read.
Errors: `DataError` naming the file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from partialkd.data.formats.npz_file import NPY_ERRORS, first_line
from partialkd.data.formats.text_file import read_lines, read_text
from partialkd.errors import DataError

_CONF, _MEMORY_MAP = ".conf", "memfile/mem_file.dat"
_SLACK = 0.01  # by which a float may miss the pixel that it is of


class PixelArray:
    """Images of one size. bgr: the order of their colours; None: as their type says."""

    def __init__(self, path: Path, bgr: bool | None = None) -> None:
        self.path = _array_in(Path(path))
        values = _mapped(self.path) if self.path.suffix == ".dat" else _loaded(self.path)
        if values.ndim == 4 and values.shape[1] != 3 and values.shape[3] == 3:
            values = np.moveaxis(values, 3, 1)
        if values.ndim != 4 or values.shape[1] != 3:
            raise DataError(f"{self.path}: must hold images (2n, 3, H, W), got {values.shape}")
        if values.dtype != np.uint8 and values.dtype.kind != "f":
            raise DataError(f"{self.path}: must hold pixels in uint8, or floats from -1 to 1, got {values.dtype}")
        self._values = values
        self._bgr = values.dtype.kind == "f" if bgr is None else bgr

    def __len__(self) -> int:
        return len(self._values)

    def pixels(self, index: int) -> np.ndarray:
        """Return the pixels of an image (H, W, 3) uint8, RGB."""
        image = np.asarray(self._values[index])
        if image.dtype != np.uint8:
            image = self._bytes(image, index)
        image = image[::-1] if self._bgr else image
        return np.ascontiguousarray(np.moveaxis(image, 0, 2))

    def _bytes(self, image: np.ndarray, index: int) -> np.ndarray:
        levels = (image.astype(np.float64) + 1) * 127.5
        rounded = levels.round()
        if not (np.abs(levels - rounded) < _SLACK).all() or rounded.min() < 0 or rounded.max() > 255:
            rule = "floats must be pixels brought to -1 ... 1, (p / 127.5) - 1"
            raise DataError(f"{self.path}: image {index}: {rule}, got {image.min():.4g} to {image.max():.4g}")
        return rounded.astype(np.uint8)


def read_answers(path: Path) -> np.ndarray:
    """Read whether the pairs are of one person -> (n,) bool."""
    if path.suffix == ".npy":
        values = _loaded(path)
        if values.ndim != 1 or values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
            raise DataError(f"{path}: must hold (n,) truths, got {values.shape} {values.dtype}")
        return np.asarray(values).astype(bool)
    answers = []
    for number, line in read_lines(path):
        if line.strip() not in ("0", "1", "True", "False"):
            raise DataError(f"{path}: line {number}: must be 0 or 1, got {line.strip()[:40]!r}")
        answers.append(line.strip() in ("1", "True"))
    return np.array(answers, bool)


def _array_in(path: Path) -> Path:
    """Find the file of the array: the path itself, or what is in a folder."""
    if not path.is_dir():
        return path
    if (path / _MEMORY_MAP).is_file():
        return path / _MEMORY_MAP
    arrays = sorted(path.glob("*.npy"))
    if len(arrays) == 1:
        return arrays[0]
    if (path / "meta" / "sizes").is_file():
        rule = "is a folder of bcolz, which is not read; where bcolz is installed: "
        raise DataError(f"{path}: {rule}numpy.save('{path.name}.npy', bcolz.carray(rootdir='{path.name}')[:])")
    raise DataError(f"{path}: must hold one .npy or {_MEMORY_MAP}, holds {len(arrays)} .npy")


def _loaded(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except NPY_ERRORS as error:
        raise DataError(f"{path}: not a .npy of numbers that can be read: {first_line(error)}") from error


def _mapped(path: Path) -> np.ndarray:
    conf = path.with_name(path.name + _CONF)
    try:
        said = json.loads(read_text(conf))
        shape, dtype = tuple(int(length) for length in said["shape"]), np.dtype(said["dtype"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{conf}: must say shape and dtype as JSON: {type(error).__name__}: {error}") from error
    try:
        size = path.stat().st_size
        if dtype.kind not in "fu" or min(shape, default=0) <= 0 or size != math.prod(shape) * dtype.itemsize:
            raise DataError(f"{path}: has {size} bytes, but {conf.name} says {shape} {dtype}")
        return np.memmap(path, mode="r", shape=shape, dtype=dtype)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
