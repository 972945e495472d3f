"""The classifier of InsightFace's arcface_torch: a file a rank, in the folder of its run.

    checkpoint_gpu_<rank>.pt       under "state_dict_softmax_fc", beside network and optimiser, which are not read
    softmax_fc_gpu_<rank>.pt       of earlier versions: the state_dict alone
    rank_<rank>_softmax_weight.pt  of the earliest: the matrix alone

Rank r of W holds C // W rows, one more if r < C % W, in the order of class ids: put together in the order of ranks, row
k is class id k of the .rec that it was trained on. Neither W nor C is in the files: that the last ranks are missing may
be found only when rows and classes are compared.
Shapes: -> W matrices (rows, D), memory-mapped: who takes some rows reads only those.
Errors: TeacherError naming folder or file. Nothing is unpickled but tensors and plain values.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partialkd.errors import TeacherError
from partialkd.models.weights import why_unreadable
from partialkd.world.shard import shard_of

_KINDS = ("checkpoint_gpu_{}.pt", "softmax_fc_gpu_{}.pt", "rank_{}_softmax_weight.pt")


def shard_files(folder: Path) -> dict[str, int]:
    """Pattern of the files' names -> how many there are, for every kind that is there."""
    names = [path.name for path in folder.glob("*.pt")]
    counts = {kind: sum(_is_of(kind, name) for name in names) for kind in _KINDS}
    return {kind: count for kind, count in counts.items() if count}


def _is_of(kind: str, name: str) -> bool:
    """Nothing but a number may stand in the place of the rank: copies that lie beside are no ranks."""
    return re.fullmatch(kind.replace(".", r"\.").format(r"\d+"), name) is not None


def read_shards(folder: Path) -> list[Tensor]:
    """The rows of each rank."""
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
        raise TeacherError(f"{path}: cannot be read: {why_unreadable(error)}") from error
    if isinstance(content, dict):
        content = content.get("state_dict_softmax_fc", content)
    if isinstance(content, dict):
        content = content.get("weight")
    if not (isinstance(content, Tensor) and content.dim() == 2 and content.is_floating_point()):
        raise TeacherError(f"{path}: must hold the rows of a classifier (weight) as arcface_torch saves them")
    return content
