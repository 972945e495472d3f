"""Make a small set of templates out of aligned faces, laid out as IJB-B and IJB-C are (data/formats/ijb_folder.py).

Each aligned face is pasted, turned and scaled into a larger picture, with the landmarks that the template has there, so
that aligning it gives the face back. Each identity with at least `LEAST` images gives a gallery template of stills (the
galleries G1 and G2 take turns), and probe templates of which each holds one still and one video: a few frames of one
image that differ by blur and noise. Pairs are all of one identity, and as many of two for each as asked.
Everything is drawn from the seed. For tests and examples: what it measures is no benchmark that anybody else has.
Errors: `DataError` naming what is wrong with the images. The folder appears complete or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from partialkd.align.template import TEMPLATE, moved, warped
from partialkd.data.formats.image_tree import list_images, read_images
from partialkd.data.images.decode import Wanted, decode
from partialkd.data.images.encode import encode_jpeg
from partialkd.errors import DataError
from partialkd.storage.atomic_files import new_folder, refuse_existing, write_bytes, write_text
from partialkd.world.passes import counted

LEAST = 6  # images of an identity
SIDE = 112  # of the faces
PICTURE = 224  # pixels per side of what they are pasted into
FRAMES = 3
STRANGERS = 20  # impostor pairs for each probe template


@dataclass(frozen=True)
class _Part:
    """One image of a template: where it comes from, and how much it is worsened."""

    source: str
    template: int
    medium: int
    blur: float


@dataclass(frozen=True)
class _Template:
    number: int
    subject: int


def make_templates(images: Path, out: Path, identities: int = 50, seed: int = 0) -> dict[str, int]:
    """Write the set -> how many there are of what."""
    refuse_existing(out)
    rng = np.random.default_rng(seed)
    trees = {name: files for name, files in list_images(images).items() if len(files) >= LEAST}
    if len(trees) < 4:
        raise DataError(f"{images}: a set needs four identities of at least {LEAST} images, got {len(trees)}")
    chosen = [f"{name}" for name in rng.permutation(sorted(trees))[:identities]]
    parts: list[_Part] = []
    enrolled: list[_Template] = []
    probes: list[_Template] = []
    for subject, name in enumerate(chosen):
        files = [f"{name}/{file}" for file in rng.permutation(trees[name])]
        enrolled.append(_Template(1 + len(enrolled) + len(probes), subject))
        parts += [_Part(file, enrolled[-1].number, len(parts) + at, 0.0) for at, file in enumerate(files[:2])]
        for at in range(2, min(len(files) - 1, 8), 2):
            probes.append(_Template(1 + len(enrolled) + len(probes), subject))
            parts += _probe(files[at : at + 2], probes[-1].number, len(parts))
    with new_folder(out) as hidden:
        lines = list(_pictures(images, parts, hidden / "loose_crop", rng))
        _lists(hidden / "meta", parts, lines, enrolled, probes, rng)
    return {"identities": len(chosen), "images": len(parts), "templates": len(enrolled) + len(probes)}


def _probe(files: list[str], template: int, medium: int) -> list[_Part]:
    still, video = files
    frames = [_Part(video, template, medium + 1, 0.4 * (frame + 1)) for frame in range(FRAMES)]
    return [_Part(still, template, medium, 0.0), *frames]


def _pictures(images: Path, parts: list[_Part], folder: Path, rng: np.random.Generator) -> Iterator[str]:
    """Write the pictures; give the line of each for name_5pts_score.txt."""
    folder.mkdir()
    wanted = {part.source for part in parts}
    faces = {}
    for path, encoded in counted(read_images(images, wanted), "reading faces", len(wanted), "images"):
        faces[path] = decode(encoded, f"{images}/{path}", wanted=Wanted(SIDE))
    for number, part in enumerate(parts, 1):
        picture, landmarks = _pasted(faces[part.source], part.blur, rng)
        write_bytes(folder / f"{number}.jpg", encode_jpeg(picture))
        score = 1 - 0.2 * part.blur
        yield " ".join([f"{number}.jpg", *(f"{value:.3f}" for value in landmarks.ravel()), f"{score:.3f}"])


def _pasted(face: np.ndarray, blur: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turn, scale and paste an aligned face -> the picture, its landmarks (5, 2)."""
    angle, scale = np.deg2rad(rng.uniform(-25, 25)), rng.uniform(0.9, 1.4)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.full(2, (SIDE - 1) / 2)
    shift = np.full(2, (PICTURE - 1) / 2) + rng.uniform(-15, 15, 2) - linear @ middle
    transform = np.concatenate([linear, shift[:, None]], axis=1)
    picture = warped(face, transform, PICTURE)
    if blur:
        soft = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(blur)), dtype=float)
        picture = np.clip(soft + rng.normal(0, 4, soft.shape), 0, 255).astype(np.uint8)
    return picture, moved(TEMPLATE, transform)


def _lists(
    meta: Path,
    parts: list[_Part],
    looks: list[str],
    enrolled: list[_Template],
    probes: list[_Template],
    rng: np.random.Generator,
) -> None:
    meta.mkdir()
    members = [f"{number}.jpg {part.template} {part.medium}" for number, part in enumerate(parts, 1)]
    pairs = []
    for probe in probes:
        pairs += [f"{one.number} {probe.number} 1" for one in enrolled if one.subject == probe.subject]
        others = [one for one in enrolled if one.subject != probe.subject]
        strangers = rng.permutation(len(others))[:STRANGERS]
        pairs += [f"{others[at].number} {probe.number} 0" for at in strangers]
    tables = {
        "made_face_tid_mid.txt": members,
        "made_name_5pts_score.txt": looks,
        "made_template_pair_label.txt": pairs,
        "made_1N_gallery_G1.csv": _table(enrolled[0::2]),
        "made_1N_gallery_G2.csv": _table(enrolled[1::2]),
        "made_1N_probe_mixed.csv": _table(probes),
    }
    for name, lines in tables.items():
        write_text(meta / name, "\n".join(lines) + "\n")


def _table(templates: list[_Template]) -> list[str]:
    return ["TEMPLATE_ID,SUBJECT_ID", *(f"{one.number},{one.subject}" for one in templates)]
