"""Centres from the rows of a teacher's saved classifier: one file with one matrix (K, D), or arcface_torch's folder.

The one file is .npy, .safetensors or .pt. InsightFace's arcface_torch writes one file per rank, into its run's folder:

    checkpoint_gpu_<rank>.pt       under "state_dict_softmax_fc", beside network and optimiser, which are not read
    softmax_fc_gpu_<rank>.pt       of earlier versions: the state_dict alone
    rank_<rank>_softmax_weight.pt  of the earliest: the matrix alone

Rank r of W holds C // W rows, one more if r < C % W, in the order of class ids: put together in the order of ranks, row
k is class id k of the .rec that it was trained on. Neither W nor C is in the files: that the last ranks are missing may
be found only when rows and classes are compared.
Which row is which class says a label map: one class id per row, -1 for a row that is not used, or the word "identity".
Shapes: matrices (rows, D), memory-mapped where the format allows: who takes some rows reads only those.
Errors: TeacherError naming folder or file. Nothing is unpickled but tensors and plain values.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partialkd.centres.store import CentreStore
from partialkd.data.formats.text_file import read_lines
from partialkd.errors import CheckpointError, DataError, TeacherError
from partialkd.models.foreign_files import strange_kind, why_unreadable
from partialkd.models.weights import read_tensors
from partialkd.teacher.centres import checked_rows
from partialkd.world.passes import Pass
from partialkd.world.shard import shard_of
from partialkd.world.world import World

AT_ONCE = 1 << 14  # rows
_ID = re.compile(r"-1|[0-9]{1,10}")
_KINDS = ("checkpoint_gpu_{}.pt", "softmax_fc_gpu_{}.pt", "rank_{}_softmax_weight.pt")


def shard_files(folder: Path) -> dict[str, int]:
    """Count the files of every kind that is there: pattern of their names -> how many."""
    names = [path.name for path in folder.glob("*.pt")]
    counts = {kind: sum(_is_of(kind, name) for name in names) for kind in _KINDS}
    return {kind: count for kind, count in counts.items() if count}


def _is_of(kind: str, name: str) -> bool:
    """Accept nothing but a number in the place of the rank: copies that lie beside are no ranks."""
    return re.fullmatch(kind.replace(".", r"\.").format(r"\d+"), name) is not None


def read_shards(folder: Path) -> list[Tensor]:
    """Read the rows of each rank."""
    found = shard_files(folder)
    if len(found) != 1:
        kinds = ", ".join(kind.format(0) for kind in _KINDS)
        raise TeacherError(f"{folder}: must hold a classifier's files of one kind ({kinds}), got {len(found)} kinds")
    ((kind, count),) = found.items()
    shards = [_matrix(folder / kind.format(rank)) for rank in range(count)]
    total, dim = sum(map(len, shards)), shards[0].shape[1]
    for rank, shard in enumerate(shards):
        wanted = (len(shard_of(total, rank, count)), dim)
        if tuple(shard.shape) != wanted:
            rule = f"{wanted[0]} of the {total} rows of {dim} numbers are rank {rank}'s of {count}"
            raise TeacherError(f"{folder / kind.format(rank)}: {rule}, got {tuple(shard.shape)}")
    return shards


def _matrix(path: Path) -> Tensor:
    try:
        content: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged file raises many kinds
        raise TeacherError(f"{path}: cannot be read: {why_unreadable(error, path)}") from error
    if isinstance(content, dict):
        content = content.get("state_dict_softmax_fc", content)
    if isinstance(content, dict):
        content = content.get("weight")
    if isinstance(content, Tensor) and (kind := strange_kind(content)) is not None:
        raise TeacherError(f"{path}: a classifier is a dense matrix of real numbers, got one {kind}")
    if not (isinstance(content, Tensor) and content.dim() == 2 and content.is_floating_point()):
        raise TeacherError(f"{path}: must hold the rows of a classifier (weight) as arcface_torch saves them")
    return content


def classifier_rows(
    store: CentreStore, path: Path, label_map: str, project: Callable[[Tensor], Tensor], world: World
) -> None:
    """Collective. Fill the store with the classifier's rows, projected as the teacher's embeddings are."""
    own = lambda: own_rows(path, label_map, store.shard, store.num_classes, store.dim, project, store.device)
    store.fill(*world.together(own))


def own_rows(
    path: Path,
    label_map: str,
    shard: range,
    num_classes: int,
    dim: int,
    project: Callable[[Tensor], Tensor],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Read a classifier -> places in the shard (n,), rows (n, dim), projected; TeacherError if they do not fit."""
    shards = read_shards(path) if path.is_dir() else [read_matrix(path)]
    ids = read_label_map(label_map, sum(map(len, shards)), num_classes)
    mine = torch.nonzero((ids >= shard.start) & (ids < shard.stop)).squeeze(1)
    rows = checked_rows(project(taken(shards, mine).float().to(device)), dim, path)
    return (ids[mine] - shard.start).to(device), rows


def taken(shards: list[Tensor], rows: Tensor) -> Tensor:
    """Take these rows, ascending, of all shards, which lie one after the other; says how far it is."""
    starts = accumulate([0, *map(len, shards)])
    pieces = []
    with Pass("reading the classifier", len(rows), "rows") as reading:
        for shard, at in zip(shards, starts, strict=False):
            for places in (rows[(rows >= at) & (rows < at + len(shard))] - at).split(AT_ONCE):
                pieces.append(shard[places])
                reading.add(len(places))
    return torch.cat(pieces)


def read_matrix(path: Path) -> Tensor:
    """Read the one matrix (K, D) of a file; memory-mapped where the format allows."""
    try:
        if path.suffix == ".npy":
            return _the_matrix({"array": torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))}, path)
        if path.suffix == ".safetensors":
            return _the_matrix(read_tensors(path), path)
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (TeacherError, CheckpointError):
        raise
    except Exception as error:  # a damaged file raises many kinds
        raise TeacherError(f"{path}: cannot be read: {why_unreadable(error, path)}") from error
    return _the_matrix(content if isinstance(content, dict) else {"tensor": content}, path)


def read_label_map(label_map: str, rows: int, num_classes: int) -> Tensor:
    """Read the class id of every classifier row (K,) int64, -1 where unused; each class exactly once."""
    if label_map == "identity":
        ids = torch.arange(rows)
    else:
        ids = torch.tensor(_listed_ids(Path(label_map)), dtype=torch.int64)
    if len(ids) != rows:
        raise TeacherError(f"{label_map}: must have a line for each of the {rows} classifier rows, got {len(ids)}")
    used = ids[ids != -1]
    found = used[(used >= 0) & (used < num_classes)].unique()
    if len(found) != len(used) or len(found) != num_classes:
        raise TeacherError(
            f"{label_map}: must name each class in [0, {num_classes}) once (-1: unused), "
            f"got {len(used)} ids, {len(found)} of them distinct and in range"
        )
    return ids


def _listed_ids(path: Path) -> list[int]:
    try:
        lines = read_lines(path)
    except DataError as error:
        raise TeacherError(str(error)) from error
    words = [(number, word) for number, line in lines for word in line.split()]
    for number, word in words:
        if not _ID.fullmatch(word):
            raise TeacherError(f"{path}: line {number}: must be one class id per line, or -1, got {word[:40]!r}")
    return [int(word) for _, word in words]


def file_digest(path: str | None) -> str | None:
    """Hash a file's content, or a classifier's files in a folder: sha256; a word that is neither is returned itself."""
    if path is not None and Path(path).is_dir():
        names = [kind.format(rank) for kind, count in shard_files(Path(path)).items() for rank in range(count)]
        digests = {name: file_digest(str(Path(path) / name)) for name in names}
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    if path is None or not Path(path).is_file():
        return path
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _the_matrix(tensors: dict[str, Any], path: Path) -> Tensor:
    matrices = [x for x in tensors.values() if isinstance(x, Tensor) and x.dim() == 2]
    if len(matrices) != 1:
        raise TeacherError(f"{path}: must hold exactly one matrix (rows of a classifier), got {len(matrices)}")
    if (kind := strange_kind(matrices[0])) is not None:
        raise TeacherError(f"{path}: a classifier is a dense matrix of real numbers, got one {kind}")
    if not matrices[0].is_floating_point():
        raise TeacherError(f"{path}: a classifier is a matrix of floating-point numbers, got {matrices[0].dtype}")
    return matrices[0]
