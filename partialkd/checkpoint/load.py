"""Checkpoints that any world size can load: complete or invisible, checked, centres in global class coordinates.

    <root>/step_000000123/
      student.safetensors        full state of the student and its optimiser, from rank 0
      local/00000.safetensors    what each rank has of its own: buffers, random number generators
      centres/                   rows of the class centres of all ranks (sharded_file.py)
      progress.json              how far the run was
      manifest.json              format, step, world size, classes, score, size and checksum of every file

Each rank writes and checksums its own files into a hidden folder; when all are on the disk, rank 0 adds the manifest
and renames the folder (saver.py, folder.py). Killed at any byte of this, a run has the checkpoints
that it had before. Loading reads each file once, on the ranks that need it, and compares what it read with the
checksum; nothing is given out before everything has been checked on every rank. Nothing is pickled.
`<root>` must be one folder seen by all ranks, and one run's own. Loaded tensors are on the CPU.

Errors: `CheckpointError` on every rank when any rank fails (disk full, read-only, damaged or missing file, other number
of classes), naming rank and file, so that nobody waits for a rank that left.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import Tensor

from partialkd.checkpoint.folder import read_manifest, written
from partialkd.checkpoint.snapshot import CENTRES, PROGRESS, STUDENT, Snapshot, everywhere, local_file
from partialkd.errors import CheckpointError, PartialKDWarning
from partialkd.storage.finite import not_finite
from partialkd.storage.sharded_file import read_rows
from partialkd.storage.tensor_file import Files, read_bytes, read_tensors
from partialkd.world.passes import Pass
from partialkd.world.world import World


def load(path: Path, world: World, shard: range, num_classes: int) -> Snapshot:
    """Load what this rank needs of a checkpoint written at any world size; collective.

    At the saved world size `local` is this rank's own. At another it is the same on every rank: floating-point
    "buffer.*" and "average.*" entries are the mean over all saved ranks, "rng.*" entries are absent, others are
    rank 0's.
    """
    with Pass(f"reading {path.name}"):
        return everywhere(world, f"loading {path}", lambda: _read(path, world, shard, num_classes))


def load_newest(root: Path, world: World, shard: range, num_classes: int) -> tuple[Path, Snapshot] | None:
    """Load the newest checkpoint that is undamaged, collectively; None if there never was one.

    Rank 0 warns of each that it passes over, saying why. Raises CheckpointError if there are some and all are damaged:
    a run that has lost its checkpoints does not begin again by itself.
    """
    problems = []
    for path in world.on_main(lambda: written(root)[::-1]):
        try:
            return path, load(path, world, shard, num_classes)
        except CheckpointError as error:
            problems.append(str(error))
            if world.is_main:
                warnings.warn(f"checkpoint passed over: {error}", PartialKDWarning, stacklevel=2)
    if problems:
        raise CheckpointError(f"no checkpoint of {root} can be loaded: {'; '.join(problems)}")
    return None


def _read(path: Path, world: World, shard: range, num_classes: int) -> Snapshot:
    manifest = read_manifest(path)
    if manifest.num_classes != num_classes:
        raise CheckpointError(f"must hold the centres of {num_classes} classes, got {manifest.num_classes}")
    files = manifest.files
    centres = {name.removeprefix(f"{CENTRES}/"): total for name, total in files.items() if name.startswith(CENTRES)}
    snapshot = Snapshot(
        step=manifest.step,
        student=read_tensors(path / STUDENT, files[STUDENT]),
        local=read_local(path, files, manifest.world_size, world),
        centres=read_rows(path / CENTRES, centres, shard),
        shard=shard,
        num_classes=num_classes,
        progress=json.loads(read_bytes(path / PROGRESS, files[PROGRESS])),
    )
    if problem := not_finite({**snapshot.student, **snapshot.local, **snapshot.centres}):
        raise CheckpointError(problem)  # earlier versions have saved such
    return snapshot


def read_local(path: Path, files: Files, saved_by: int, world: World) -> dict[str, Tensor]:
    """Read the local state of this rank, or what takes its place on ranks that are not those that saved."""
    ranks = [world.rank] if saved_by == world.size else range(saved_by)
    saved = [read_tensors(path / local_file(rank), files[local_file(rank)]) for rank in ranks]
    return saved[0] if saved_by == world.size else _shared_local(saved)


def _shared_local(saved: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Make the local state for ranks that are not those that saved, from all of theirs."""
    shared = {key: value for key, value in saved[0].items() if not key.startswith("rng.")}
    for key, value in shared.items():
        if key.startswith(("buffer.", "average.")) and value.is_floating_point():
            shared[key] = torch.stack([one[key].double() for one in saved]).mean(dim=0).to(value.dtype)
    return shared
