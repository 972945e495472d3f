"""Folders that are checkpoints: name, manifest and sizes; publishing one and removing old ones.

A checkpoint is called `step_000000123`, or `step_000000123-2` where one of that step was there already: nothing has to
make way before its successor is there, and the higher number is the newer. It is written in a hidden folder,
manifest last, and appears by one rename. The manifest has the size and CRC-32 of every other file, and the CRC-32 of
itself.

Errors: `CheckpointError` naming the file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path

from partialkd.errors import CheckpointError
from partialkd.storage import atomic_files
from partialkd.storage.atomic_files import hidden_name, remove_folder, sweep_owned
from partialkd.storage.manifest import MANIFEST, manifest_bytes
from partialkd.storage.manifest import read_manifest as read_checked
from partialkd.storage.tensor_file import Files, check_file, check_size, sums_from_json, sums_to_json, write_summed
from partialkd.world.passes import counted

FORMAT = 2  # 1 had no checksums, and centres as torch.distributed.checkpoint writes them, with pickled metadata
NAME = re.compile(r"step_(\d{9,})(?:-(\d+))?")


@dataclass(frozen=True)
class Manifest:
    """Facts that a checkpoint says of itself."""

    step: int
    world_size: int  # that saved it
    num_classes: int
    score: float | None  # lower is better
    files: Files


# ------------------------------------------------------------------------------------------------- looking


def complete(root: Path) -> list[Path]:
    """Complete checkpoints by step, oldest first. Sizes are compared, contents are not."""
    return [path for path in written(root) if fault(path) is None]


def newest(root: Path) -> Path | None:
    """Find the complete checkpoint with the most steps; one process's view: let one rank choose and tell the others."""
    return next(reversed(complete(root)), None)


def best(root: Path) -> Path | None:
    """Find the complete checkpoint with the lowest score, the newest of equal ones; None if none has a score."""
    lowest, found = math.inf, None
    for path in complete(root):
        score = read_manifest(path).score
        if score is not None and score <= lowest:
            lowest, found = score, path
    return found


def written(root: Path) -> list[Path]:
    """List whatever is called like a checkpoint, by step, oldest first."""
    found = [path for path in root.glob("step_*") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: _order(path.name))


def fault(path: Path) -> str | None:
    """Say what keeps a folder from being a complete checkpoint; None if nothing does. Reads the manifest only."""
    try:
        for name, expected in read_manifest(path).files.items():
            check_size(path / name, expected)
    except CheckpointError as error:
        return str(error)
    return None


def verify(path: Path) -> None:
    """CheckpointError naming the first file that is not as it was written. Reads all of them."""
    files = read_manifest(path).files
    for name, expected in counted(files.items(), f"checking {path.name}", len(files), "files"):
        check_file(path / name, expected)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the checkpoint `path`."""
    facts = read_checked(path, CheckpointError, FORMAT, required=True)
    try:
        del facts["format"]
        return Manifest(**{**facts, "files": sums_from_json(facts["files"])})
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST}: damaged: {type(error).__name__}: {error}") from error


def _order(name: str) -> tuple[int, int]:
    """Step, and the how manyth writing of it."""
    match = NAME.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2] or 1)


# ------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Target:
    """Place where a checkpoint is written, and what it will be called."""

    partial: Path
    final: Path


def open_target(root: Path, step: int) -> Target:
    """A fresh hidden folder, whatever earlier processes left removed. Only rank 0 makes it.

    Its name is its own, so that a process thought dead that still writes cannot write into it.
    """
    root.mkdir(parents=True, exist_ok=True)
    sweep_owned(root, "step_*")
    final = root / _next_name(root, step)
    partial = hidden_name(final)
    for name in ("local", "centres"):
        (partial / name).mkdir(parents=True)
    return Target(partial, final)


def _next_name(root: Path, step: int) -> str:
    """Sorts after all that are there of this step."""
    number = max((_order(path.name)[1] for path in written(root) if _order(path.name)[0] == step), default=0) + 1
    return f"step_{step:09d}" if number == 1 else f"step_{step:09d}-{number}"


def publish(target: Target, manifest: Manifest, keep: int, keep_best: bool) -> None:
    """Manifest, flush, rename; then remove what is neither new nor best."""
    facts = {field.name: getattr(manifest, field.name) for field in fields(manifest)}
    facts = {"format": FORMAT, **facts, "files": sums_to_json(manifest.files)}
    write_summed(target.partial / MANIFEST, [manifest_bytes(facts)])
    atomic_files.publish(target.partial, target.final)
    _remove_old(target.final, keep, keep_best)


def _remove_old(final: Path, keep: int, keep_best: bool) -> None:
    """`final` stays, the `keep` newest stay, and the best if asked; of one step, only the last writing."""
    found = complete(final.parent)
    steps = {_order(path.name)[0]: path for path in found}  # the last writing of each
    kept = {final, *list(steps.values())[-keep:]}
    if keep_best and (champion := best(final.parent)):
        kept.add(champion)
    for old in found:
        if old not in kept:
            remove_folder(old)
