"""Draw faces: a training set and a verification set of other identities, drawn from a seed, no photographs.

A picture is a function of (seed, identity, image) and the size only, however many processes draw. Training identities
are 0..identities-1, evaluated ones `HELD_OUT`, `HELD_OUT` + 1, ...: for one seed they are the same people whatever the
training set's size. The folder is an InsightFace folder (train.rec, train.idx, property) plus faces.bin.
Pairs of the verification set alternate between one person and two, drawn independently (a pair may come twice).

Difficulty at the default numbers and 48 pixels, 10-fold accuracy over 3000 pairs: cosine of raw pixels 57 %, of a
network of 6 M multiply-adds (six 3x3 convolutions) trained for eight epochs on 400 x 24 pictures 92 % (measured once).
Errors: `DataError` naming the folder, if it was made from other settings or not by this module.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.config import ProceduralConfig
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.formats.verification_bin import write_bin
from partialkd.data.packing.face_drawing import draw_jpegs
from partialkd.errors import DataError
from partialkd.storage.made_folder import make_once
from partialkd.world.passes import counted

DRAWING = 1  # raised when the same settings give other pictures
HELD_OUT = 1 << 32  # first evaluated identity
VERIFICATION = "faces.bin"
_CHUNK = 64  # pictures a process draws before it hands them over
_WORTH_PROCESSES = 1000  # pictures; fewer are drawn before other processes have started
Key = tuple[int, int]  # identity, image


def make_faces(config: ProceduralConfig, image_size: int, folder: Path, processes: int = 2) -> dict[str, Any]:
    """Make the folder, or find it made; returns its facts (images, identities, pairs)."""
    made_from = {"drawing": DRAWING, "image_size": image_size, **config.model_dump()}

    def fill(new: Path, facts: dict[str, Any]) -> None:
        keys = [(who, image) for who in range(config.identities) for image in range(config.images_per_identity)]
        pictures = draw_faces(config.seed, image_size, keys, processes)
        labelled = ((picture, who) for picture, (who, _) in zip(pictures, keys, strict=True))
        facts["images"] = pack_records(new, labelled, config.identities, image_size)
        facts["identities"] = config.identities
        pairs, same = verification_pairs(config)
        write_bin(new / VERIFICATION, list(draw_faces(config.seed, image_size, pairs, processes)), same)
        facts["pairs"] = {VERIFICATION: len(same)}

    return make_once(folder, made_from, fill)


def verification_pairs(config: ProceduralConfig) -> tuple[list[Key], np.ndarray]:
    """Choose 2n keys, keys 2k and 2k + 1 are pair k; (n,) bool: one person, two people, one person, ..."""
    rng = np.random.default_rng([config.seed, 3])
    keys: list[Key] = []
    same = np.arange(config.pairs) % 2 == 0
    for one_person in same:
        if one_person:
            person = int(rng.integers(config.held_out_identities))
            first, second = rng.choice(config.images_per_identity, 2, replace=False).tolist()
            keys += [(HELD_OUT + person, first), (HELD_OUT + person, second)]
        else:
            people = rng.choice(config.held_out_identities, 2, replace=False).tolist()
            images = rng.integers(config.images_per_identity, size=2).tolist()
            keys += [(HELD_OUT + person, image) for person, image in zip(people, images, strict=True)]
    return keys, same


def draw_faces(seed: int, image_size: int, keys: list[Key], processes: int) -> Iterator[bytes]:
    """Draw the pictures of the keys as JPEG, in order; says how far it is."""
    return counted(_draw(seed, image_size, keys, processes), "drawing faces", len(keys), "images")


def _draw(seed: int, image_size: int, keys: list[Key], processes: int) -> Iterator[bytes]:
    if processes < 2 or len(keys) < _WORTH_PROCESSES:
        yield from draw_jpegs(seed, image_size, keys)
        return
    chunks = [keys[at : at + _CHUNK] for at in range(0, len(keys), _CHUNK)]
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may never return
    try:
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            count = len(chunks)
            for pictures in pool.map(draw_jpegs, [seed] * count, [image_size] * count, chunks):
                yield from pictures
    except BrokenProcessPool as error:
        raise DataError(f"a process that drew faces died: {error}") from error
