"""Embed a long list of images with all ranks, each plain and mirrored, so that a killed pass can be gone on with.

Images are cut into pieces, pieces dealt out to the ranks, batches within a piece always the same ones: the embeddings
do not depend on the number of ranks. With a folder to keep them in, a piece is a file of its own, and what is there
already is not computed again; the folder says in its manifest what its pieces are of, and is refused for anything else.
Errors: `DataError` naming the image, on every rank; `CheckpointError` naming the file for a damaged piece.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partialkd.data.images.tensors import to_tensor
from partialkd.data.ordered_threads import in_order
from partialkd.errors import CheckpointError, ConfigError, DataError
from partialkd.storage.atomic_files import write_bytes
from partialkd.storage.checksum import crc32, hexadecimal
from partialkd.storage.manifest import MANIFEST, read_manifest, write_manifest
from partialkd.world.passes import Pass, counted, of_rank
from partialkd.world.shard import shard_of
from partialkd.world.world import World

Embed = Callable[[Tensor], Tensor]
Held = Callable[[np.ndarray], np.ndarray]
PIECE = 1024  # images
LOOK_AHEAD = 256  # images


@dataclass(frozen=True)
class Images:
    """A list of faces: how many there are, the pixels of each (H, W, 3) uint8, and what an error calls it."""

    count: int
    pixels: Callable[[int], np.ndarray]
    name: Callable[[int], str]
    doing: str  # for the progress
    look: Callable[[int], None] | None = None  # DataError for an image whose header says it cannot be used


@dataclass(frozen=True)
class Kept:
    """Where pieces are kept, and what they are of: the network and the list."""

    folder: Path
    of: dict[str, Any]

    def begin(self) -> None:
        """Make the folder, or see that it is of the same."""
        if not (self.folder / MANIFEST).exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ConfigError(f"{self.folder}: holds something else; choose another folder for the embeddings")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_manifest(self.folder, {"embeddings_of": self.of})
        elif read_manifest(self.folder, CheckpointError, required=True).get("embeddings_of") != self.of:
            raise ConfigError(f"{self.folder}: holds embeddings of another network or list; choose another folder")

    def path(self, piece: int) -> Path:
        """Return the file of a piece."""
        return self.folder / f"piece_{piece:06d}.npy"

    def write(self, piece: int, rows: np.ndarray) -> None:
        """rows (2, n, D) float32, with their checksum and shape before them."""
        head = f"{hexadecimal(crc32(rows.tobytes()))} {rows.shape[1]} {rows.shape[2]}\n".encode()
        write_bytes(self.path(piece), head + rows.tobytes())

    def read(self, piece: int) -> np.ndarray:
        """Read a piece (2, n, D)."""
        head, _, content = self.path(piece).read_bytes().partition(b"\n")
        try:
            expected, count, width = head.split()
            rows = np.frombuffer(content, np.float32).reshape(2, int(count), int(width))
        except ValueError as error:  # cut short, or its first line is another
            raise CheckpointError(f"{self.path(piece)}: damaged: {error}; remove it") from error
        if hexadecimal(crc32(content)).encode() != expected:
            raise CheckpointError(f"{self.path(piece)}: damaged: its checksum is another; remove it")
        return rows


def look_at(images: Images, world: World) -> None:
    """Collective. Look at the header of each image once, shared out among the ranks; DataError naming the first."""
    if (look := images.look) is None:
        return
    mine = shard_of(images.count, world.rank, world.size)
    threads = max(1, (os.cpu_count() or 1) // world.size)
    doing = images.doing.replace("embedding", "looking at")

    def all_of_mine() -> None:
        for _ in counted(in_order(look, mine, threads, LOOK_AHEAD), doing, len(mine), "images"):
            pass

    world.together(all_of_mine)


@torch.no_grad()
def embed_images(
    embed: Embed,
    images: Images,
    image_size: int,
    batch: int,
    world: World,
    kept: Kept | None = None,
    held: Held = np.asarray,
) -> np.ndarray:
    """Collective -> (2, n, D) float32 on every rank: embeddings of the images, and of their mirror images.

    held: what is made of the embeddings of some images (2, b, D) for the result, (k, b, D); files keep both of them.
    """
    if kept is not None:
        world.on_main(kept.begin)
    pieces = [range(start, min(start + PIECE, images.count)) for start in range(0, images.count, PIECE)]
    mine = [number for number in range(len(pieces)) if number % world.size == world.rank]
    done = {number for number in mine if kept is not None and kept.path(number).exists()}
    own: dict[int, np.ndarray] = {}

    def work() -> None:
        todo = [number for number in mine if number not in done]
        total = sum(len(pieces[number]) for number in todo)
        doing = of_rank(images.doing, world.rank, world.size)
        with Pass(doing, total, "images") as going:
            for number in todo:
                batches = []
                for rows in _embedded(embed, images, pieces[number], image_size, batch, world):
                    batches.append(rows)
                    going.add(rows.shape[1])
                if kept is None:
                    own[number] = held(np.concatenate(batches, axis=1))
                else:
                    kept.write(number, np.concatenate(batches, axis=1))

    world.together(work)
    if kept is not None:
        return world.together(lambda: _joined(lambda piece: held(kept.read(piece)), pieces))
    everyones = {number: rows for part in world.gather_objects(own) for number, rows in part.items()}
    own.clear()
    return _joined(everyones.pop, pieces)


def _joined(piece: Callable[[int], np.ndarray], pieces: list[range]) -> np.ndarray:
    """Put pieces together one by one, so that they are never held twice -> (k, n, D)."""
    first = piece(0)
    rows = np.empty((len(first), pieces[-1].stop, first.shape[2]), dtype=np.float32)
    rows[:, pieces[0].start : pieces[0].stop] = first
    for number in range(1, len(pieces)):
        rows[:, pieces[number].start : pieces[number].stop] = piece(number)
    return rows


def _embedded(
    embed: Embed, images: Images, piece: range, image_size: int, batch: int, world: World
) -> Iterator[np.ndarray]:
    """Give the embeddings (2, b, D) of a piece's batches; images are read ahead by threads."""
    threads = max(1, (os.cpu_count() or 1) // world.size)
    read = in_order(images.pixels, piece, threads, 2 * batch)
    for start in range(piece.start, piece.stop, batch):
        numbers = range(start, min(start + batch, piece.stop))
        pixels = to_tensor([next(read)[1] for _ in numbers], image_size, device=world.device)
        rows = torch.stack([embed(pixels).float(), embed(pixels.flip(3)).float()]).cpu().numpy()
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=(0, 2)) | ~rows.any(axis=2).all(axis=0))
        if len(wrong):
            raise DataError(f"{images.name(numbers[wrong[0]])}: its embedding is zero or not finite")
        yield rows
