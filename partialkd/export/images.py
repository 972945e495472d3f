"""The images that export looks at: some of the training set, for calibration.

Spread evenly over the training set's records, brought to the network's size; a run folder says where that set lies
(`config.toml`), or `--calibrate` names a folder of aligned images.
Errors: DataError, ConfigError.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from partialkd.align.folder import list_images
from partialkd.config import Config
from partialkd.data.formats.image_tree import read_file
from partialkd.data.images.decode import Wanted, decode
from partialkd.data.sources.open import open_source
from partialkd.errors import DataError
from partialkd.export.int8 import LEAST_IMAGES

IMAGES = 256


def calibration_images(config: Config | None, folder: Path | None, image_size: int) -> np.ndarray:
    """Read images of the training set -> (n, S, S, 3) uint8."""
    if folder is not None:
        names = list_images(folder)
        read = lambda place: (read_file(folder / names[place]), str(folder / names[place]))
        count, where = len(names), str(folder)
    elif config is not None:
        source = open_source(config.data)
        read = lambda place: (source.read(place)[0], source.name(place))
        count, where = len(source), config.data.path
    else:
        raise DataError("int8: calibration wants the training set: export a run folder, or name --calibrate FOLDER")
    if count < LEAST_IMAGES:
        raise DataError(f"{where}: int8: calibration wants {LEAST_IMAGES} images of the training set, got {count}")
    places = np.linspace(0, count - 1, min(IMAGES, count)).astype(int).tolist()
    wanted = Wanted(image_size, option="--calibrate with images of this size")
    return np.stack([decode(*read(place), wanted=wanted) for place in places])
