"""Small folders of pictures to pack, and what a packed set holds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from partialkd.data.images.decode import decode
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.data.sources.synthetic import SyntheticSource


def jpegs(count: int, size: int = 32, classes: int = 3) -> list[tuple[bytes, int]]:
    source = SyntheticSource(classes, count, size)
    return sorted((source.read(index) for index in range(count)), key=lambda item: item[1])


def as_png(image: np.ndarray, fmt: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, fmt)
    return buffer.getvalue()


def make_folder(root: Path, size: int = 32) -> dict[str, bytes]:
    """Three identities, seven images, one of them PNG -> content by path, in packing order."""
    files = {}
    for number, (image, label) in enumerate(jpegs(7, size)):
        path = f"{('anna', 'bob', 'zoë')[label]}/{number}.jpg"
        files[path] = image
    files["zoë/6.jpg"] = as_png(decode(files["zoë/6.jpg"], ""))
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return files


def packed(folder: Path) -> list[tuple[bytes, int]]:
    source = RecordIOSource(folder)
    return [source.read(index) for index in range(len(source))]
