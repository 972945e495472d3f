"""Makers of files of data that are wrong, each with the action that meets them; `test_bad_files.py` runs them all.

A maker writes into an empty folder and returns what a user would do with it. Sets of records have six images of two
identities, 32 x 32 pixels, with header and identity records; record 3 is the one that is spoilt.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from helpers.bad_images import SIZE, picture
from partialkd.config import DataConfig
from partialkd.config.load import load_config
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.formats.recordio import RecordWriter, open_writer, pack_payload
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.plan import BatchCut, TrainingPlan
from partialkd.data.sources.open import open_source
from partialkd.errors import DataError, PartialKDError
from partialkd.training.outlets import drop_later_lines

IMAGES, CLASSES = 6, 2
Action = Callable[[], Any]
Maker = Callable[[Path], Action]
RECORD = r"train\.rec: key 3 at byte \d+: "
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Fault:
    """What is wrong, how such a file comes about, and what is said."""

    what: str
    maker: Maker
    says: str
    kind: type[PartialKDError] = DataError


class Run:
    """Pickles as a call of os.system that leaves a file."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder / 'was-run'}"

    def __reduce__(self) -> object:
        return os.system, (self.command,)


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def file(name: str, content: bytes, read: Callable[[Path], object]) -> Maker:
    """A file of its own, and what reads it."""

    def make(folder: Path) -> Action:
        path = put(folder / name, content)
        return lambda: read(path)

    return make


def training_set(folder: Path, third: bytes | None = None) -> Path:
    images = [encode_jpeg(picture(number)) for number in range(IMAGES)]
    if third is not None:
        images[2] = third
    pack_records(folder, ((image, number // 3) for number, image in enumerate(images)), CLASSES, SIZE)
    return folder


def train(folder: Path, **settings: Any) -> Action:
    """Open the set and read an epoch."""

    def read() -> object:
        data = DataConfig(path=str(folder), loader="jpeg", image_size=SIZE, **settings)
        source = open_source(data)
        return list(open_loader(data, source, TrainingPlan(len(source), BatchCut(2), seed=0, flip=True), CPU).epoch(0))

    return read


def image(content: bytes, **settings: Any) -> Maker:
    """The image of record 3 is this."""
    return lambda folder: train(training_set(folder / "set", content), **settings)


def spoilt(name: str, change: Callable[[bytes], bytes], **settings: Any) -> Maker:
    """A file of the set is changed."""

    def make(folder: Path) -> Action:
        path = training_set(folder / "set") / name
        path.write_bytes(change(path.read_bytes()))
        return train(folder / "set", **settings)

    return make


def removed(name: str) -> Maker:
    """A file of the set is missing."""

    def make(folder: Path) -> Action:
        (training_set(folder / "set") / name).unlink()
        return train(folder / "set")

    return make


def index_line(key: int, offset: Callable[[int], int]) -> Callable[[bytes], bytes]:
    """In the .idx, another offset for a key."""

    def change(text: bytes) -> bytes:
        pairs = [tuple(map(int, line.split())) for line in text.decode().splitlines()]
        return "".join(f"{k}\t{offset(at) if k == key else at}\n" for k, at in pairs).encode()

    return change


def at_third(change: Callable[[bytearray, int], None]) -> Maker:
    """Bytes of the third image's record in the .rec are changed: (file, where the record begins)."""

    def make(folder: Path) -> Action:
        path = training_set(folder / "set")
        offsets = dict(map(int, line.split()) for line in (path / "train.idx").read_text().splitlines())
        content = bytearray((path / "train.rec").read_bytes())
        change(content, offsets[3])
        (path / "train.rec").write_bytes(content)
        return train(path)

    return make


def word(index: int, value: int) -> Callable[[bytearray, int], None]:
    """Word `index` of a record: 0 the magic number, 1 kind and length, 2 the flag, 3 the label."""
    return lambda content, at: struct.pack_into("<I", content, at + 4 * index, value)


def labels(*values: float | Sequence[float], classes: int = CLASSES) -> Maker:
    """A set without header record with these labels."""

    def make(folder: Path) -> Action:
        put(folder / "set" / "property", f"{classes},{SIZE},{SIZE}")
        with open_writer(folder / "set" / "train.rec", folder / "set" / "train.idx") as writer:
            for key, label in enumerate(values):
                writer.write(key, pack_payload(label, key, encode_jpeg(picture(key))))
        return train(folder / "set")

    return make


def header(first: float, second: float) -> Maker:
    """A header record with these numbers before two images."""

    def make(folder: Path) -> Action:
        put(folder / "set" / "property", f"{CLASSES},{SIZE},{SIZE}")
        with open_writer(folder / "set" / "train.rec", folder / "set" / "train.idx") as writer:
            writer.write(0, pack_payload((first, second), 0))
            for key in (1, 2):
                writer.write(key, pack_payload(key - 1, key, encode_jpeg(picture(key))))
        return train(folder / "set")

    return make


def index_of_another(folder: Path) -> Action:
    """Both are whole; the other has larger images."""
    other = folder / "other"
    pack_records(other, ((encode_jpeg(picture(n, 48)), n // 3) for n in range(IMAGES)), CLASSES, 48)
    path = training_set(folder / "set")
    (path / "train.idx").write_bytes((other / "train.idx").read_bytes())
    return train(path)


def empty_image(folder: Path) -> Action:
    path = training_set(folder / "set")
    with (path / "train.rec").open("ab") as file:
        at, writer = file.tell(), RecordWriter(file)
        writer.write(3, pack_payload(0.0, 3))
    return spoil_index(path, at)


def spoil_index(path: Path, at: int) -> Action:
    index = path / "train.idx"
    index.write_bytes(index_line(3, lambda _: at)(index.read_bytes()))
    return train(path)


def identities_map(content: bytes) -> Maker:
    def make(folder: Path) -> Action:
        put(folder / "map.txt", content)
        return train(training_set(folder / "set"), label_map=str(folder / "map.txt"))

    return make


def config_file(content: bytes) -> Maker:
    return file("run.toml", content, load_config)


def metrics(content: bytes) -> Maker:
    return file("metrics.jsonl", content, lambda path: drop_later_lines(path, "student", 1))
