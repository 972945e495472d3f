"""Centres that a phase starts from: rows of another run, of a checkpoint, or of one matrix, by this run's class ids.

Rows of our own runs keep direction, length and whether they were seen, bit for bit where they are stored in the
same precision; optimiser's moments are not taken over. Rows of a matrix become directions and lengths.
Each rank reads the rows of its own classes, from any number of files of any number of ranks.
Errors: CheckpointError and TeacherError naming the file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from partialkd.centres.store import CentreStore
from partialkd.checkpoint.folder import complete, read_manifest
from partialkd.checkpoint.network import is_checkpoint
from partialkd.checkpoint.snapshot import CENTRES
from partialkd.data.sources.source import CLASS_IDS
from partialkd.errors import CheckpointError
from partialkd.storage.finite import first_few
from partialkd.storage.manifest import MANIFEST
from partialkd.storage.manifest import read_manifest as read_facts
from partialkd.storage.sharded_file import pick_rows
from partialkd.storage.tensor_file import Files, sums_from_json
from partialkd.teacher.classifier import file_digest, read_matrix, read_shards, shard_files, taken
from partialkd.world.shard import local_rows

PARTS = ("unit", "length", "seen", "scale")  # of a row; other tensors beside them are not of the centres


class Rows(Protocol):
    """Rows of centres in files."""

    count: int
    dim: int

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Read these rows (n,) int64, in their order: parts of a store, or "matrix" (n, D)."""


class SavedRows:
    """Rows that a run has saved: files of pieces, each with its checksum."""

    def __init__(self, folder: Path, files: Files, count: int) -> None:
        self.folder, self.files, self.count = folder, files, count
        self.dim = self.take(torch.empty(0, dtype=torch.int64))["unit"].shape[1]

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        return {key: x for key, x in pick_rows(self.folder, self.files, rows).items() if key in PARTS}


class MatrixRows:
    """Rows of one matrix, or of the shards of one."""

    def __init__(self, shards: list[Tensor]) -> None:
        self.shards, self.count, self.dim = shards, sum(map(len, shards)), shards[0].shape[1]

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        ascending, places = rows.sort()
        matrix = torch.empty(len(rows), self.dim)
        matrix[places] = taken(self.shards, ascending).float()
        return {"matrix": matrix}


def open_rows(path: Path) -> Rows:
    """Open the centres of a run, of a checkpoint, or of a file."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.is_dir() and shard_files(path):
        return MatrixRows(read_shards(path))
    if not path.is_dir():
        return MatrixRows([read_matrix(path)])
    place = place_of(path)
    if is_checkpoint(place):
        manifest = read_manifest(place)
        inside = f"{CENTRES}/"
        files = {name.removeprefix(inside): x for name, x in manifest.files.items() if name.startswith(inside)}
        count = manifest.num_classes
    else:
        facts = read_facts(place, CheckpointError)
        files, count = sums_from_json(facts["files"]), facts["classes"]
    if not files:
        raise CheckpointError(f"{place}: holds no centres: those of its method are the teacher's")
    return SavedRows(place / CENTRES, files, count)


def place_of(path: Path) -> Path:
    """Find the folder that holds the centres: of a checkpoint or of a finished phase; CheckpointError without one."""
    if is_checkpoint(path):
        return path
    for folder in (path / "student", path):
        if (folder / CENTRES / MANIFEST).is_file():
            return folder / CENTRES
        if there := complete(folder / "checkpoints"):
            return there[-1]
    raise CheckpointError(f"{path}: neither a run's folder with centres, a checkpoint, nor arcface_torch's classifier")


def rows_digest(path: Path) -> str:
    """Hash what identifies the rows: a manifest, which has their checksums, or the content of files."""
    if path.is_dir() and not shard_files(path):
        return hashlib.sha256((place_of(path) / MANIFEST).read_bytes()).hexdigest()
    digest = file_digest(str(path))
    assert digest is not None
    return digest


def class_ids_of(path: Path) -> Path | None:
    """Find class_ids.txt of the run that a folder of centres belongs to, None without one."""
    near = [path, *path.resolve().parents][:4] if path.is_dir() else []
    return next((folder / CLASS_IDS for folder in near if (folder / CLASS_IDS).is_file()), None)


@dataclass(frozen=True)
class GivenCentres:
    """Rows to start from and, by class id of this run, which of them is whose."""

    rows: Rows
    row_of: Tensor  # (C,) int64; -1: the class is new
    where: str  # in errors

    @property
    def new(self) -> Tensor:
        """Class ids without a row (n,) int64."""
        return (self.row_of < 0).nonzero().squeeze(1)

    def own(self, shard: range) -> tuple[Tensor, dict[str, Tensor]]:
        """Read what is of this shard -> places in it (n,), rows as `Rows.take` gives them, which are checked."""
        rows = self.row_of[shard.start : shard.stop]
        places = (rows >= 0).nonzero().squeeze(1)
        found = self.rows.take(rows[places])
        if problem := _problem(found):
            bad = first_few(f"row {row}" for row in rows[places][problem[1]].tolist())
            raise CheckpointError(f"{self.where}: holds rows that are {problem[0]}: {bad}")
        return places, found

    def fill(self, store: CentreStore) -> None:
        """Put them into the store; those of new classes stay as they are."""
        places, found = self.own(store.shard)
        places = places.to(store.device)
        if "matrix" in found:
            store.fill(places, found["matrix"].to(store.device))
        else:
            store.take_rows(places, {key: x.to(store.device) for key, x in found.items()})

    def survivors(self, shard: range) -> Tensor:
        """Places in the shard of the classes that have a row."""
        return (self.row_of[shard.start : shard.stop] >= 0).nonzero().squeeze(1)


def _problem(found: dict[str, Tensor]) -> tuple[str, Tensor] | None:
    """Say what is wrong, and with which rows (n,) bool."""
    values = [x.float().view(len(x), -1) for x in found.values() if x.is_floating_point()]
    broken = ~torch.cat(values, dim=1).isfinite().all(1)
    if broken.any():
        return "not finite", broken
    rows = found["matrix"] if "matrix" in found else found["unit"]
    zero = ~rows.any(1) & found.get("seen", torch.ones(len(rows), dtype=torch.bool))
    return ("zero", zero) if zero.any() else None


def own_places(class_ids: Tensor, shard: range) -> Tensor:
    """Places in the shard of those of the class ids (n,) that it has."""
    owned, places = local_rows(class_ids, shard)
    return places[owned]
