"""Draws docs/augmentations.png: one procedural face under every augmentation, a row each. No photographs.

python docs/draw_augmentations.py [--out docs/augmentations.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from partialkd.config import AugmentConfig
from partialkd.data.images.augment import NAMES, apply, draw
from partialkd.data.images.decode import decode
from partialkd.data.images.tensors import to_tensor
from partialkd.data.packing.face_drawing import draw_jpegs

SIZE, COLUMNS, GAP, MARGIN = 68, 7, 4, 120  # pixels; the margin holds the rows' names
FACE = (23, 1)  # identity, image
ROWS = ("as it is, flip, grey", *NAMES, "all at 0.5")


def row_of(name: str, face: np.ndarray) -> np.ndarray:
    """-> (COLUMNS, S, S, 3) uint8."""
    images = to_tensor([face] * COLUMNS, SIZE)
    if name == ROWS[0]:
        images = to_tensor([face] * 3, SIZE, np.array([False, True, False]), np.array([False, False, True]))
    else:
        shares = dict.fromkeys(NAMES, 0.5) if name == ROWS[-1] else {name: 1.0}
        apply(images, draw(AugmentConfig(**shares), 0, 0, np.arange(COLUMNS)))  # type: ignore[arg-type]
    pixels = (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy()


def picture() -> Image.Image:
    """All rows, white between the faces."""
    face = decode(draw_jpegs(0, SIZE, [FACE])[0], "the drawing")
    step = SIZE + GAP
    sheet = Image.new("RGB", (MARGIN + COLUMNS * step, len(ROWS) * step + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, name in enumerate(ROWS):
        top = GAP + number * step
        pen.text((6, top + SIZE // 2 - 6), name.replace(", ", ",\n"), fill="black")
        for column, pixels in enumerate(row_of(name, face)):
            sheet.paste(Image.fromarray(pixels), (MARGIN + column * step, top))
    return sheet


def main() -> None:
    """Draw and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("augmentations.png"))
    picture().save(parser.parse_args().out, "PNG", optimize=True)


if __name__ == "__main__":
    main()
