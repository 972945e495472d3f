"""Small InsightFace folders, written by hand, and what a source holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from partialkd.data.formats.recordio import open_writer, pack_payload
from partialkd.data.sources.insightface import RecordIOSource

Labels = float | Sequence[float]


def write_plain(folder: Path, labels: Sequence[Labels], classes: int = 10, first_key: int = 0) -> None:
    """A set without header record: the image of key k is the text of k."""
    folder.mkdir(exist_ok=True)
    (folder / "property").write_text(f"{classes},112,112\n")
    with open_writer(folder / "train.rec", folder / "train.idx") as writer:
        for key, label in enumerate(labels, first_key):
            writer.write(key, pack_payload(label, key, b"%d" % key))


def write_with_header(folder: Path, labels: Sequence[Labels], header: tuple[float, float], identities: int) -> None:
    """A set with header record 0 and identity records, written by hand."""
    folder.mkdir(exist_ok=True)
    (folder / "property").write_text("10,112,112")
    with open_writer(folder / "train.rec", folder / "train.idx") as writer:
        writer.write(0, pack_payload(header, 0))
        for key, label in enumerate(labels, 1):
            writer.write(key, pack_payload(label, key, b"%d" % key))
        for key in range(len(labels) + 1, len(labels) + 1 + identities):
            writer.write(key, pack_payload((1.0, 2.0), key))


def write_part(folder: Path, number: str, images: dict[int, tuple[float, bytes]], header: bool = False) -> None:
    """train.<number>.rec: key -> label, image; with a header and an identity record where asked for."""
    folder.mkdir(exist_ok=True)
    (folder / "property").write_text("10,112,112\n")
    with open_writer(folder / f"train.{number}.rec", folder / f"train.{number}.idx") as writer:
        if header:
            writer.write(0, pack_payload((max(images) + 1.0, 0.0), 0))
            writer.write(max(images) + 1, pack_payload((1.0, 2.0), 0))
        for key, (label, image) in images.items():
            writer.write(key, pack_payload(label, key, image))


def contents(source: RecordIOSource) -> list[tuple[bytes, int]]:
    return [source.read(index) for index in range(len(source))]
