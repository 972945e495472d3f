"""Checkpoints that any world size can load: complete or invisible, centres in global class coordinates.

    <root>/step_000000123/
      student.safetensors        full state of the student and its optimiser, from rank 0
      local/00000.safetensors    what each rank has of its own: buffers, random number generators
      centres/                   rows of the class centres of all ranks (sharded_file.py)
      progress.json              how far the run was
      manifest.json              format, step, world size, classes, every file with its size; written last

Everything goes into a hidden folder, is flushed to the disk and renamed at the end, so a folder called `step_*`
was complete when it appeared; `newest` compares the sizes again. `<root>` must be one folder seen by all ranks, and
one run's own. Loaded tensors are on the CPU.

Errors: `CheckpointError` on every rank when any rank fails (disk full, read-only, damaged file, other number of
classes), so that nobody waits for a rank that left. A failed save leaves the earlier checkpoints as they were.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from partialkd.centres.shard import shard_of
from partialkd.dist import World
from partialkd.errors import CheckpointError, PartialKDError
from partialkd.files import sync, write_json
from partialkd.sharded_file import RowsNotWritten, read_rows, write_rows

FORMAT = 1

T = TypeVar("T")


@dataclass
class Snapshot:
    """Everything a run needs to go on, as one rank has it."""

    step: int  # optimiser steps done
    student: dict[str, Tensor]  # full and flat; needed on rank 0 when saving, present on every rank after loading
    local: dict[str, Tensor]  # this rank's buffers and random number generators (uint8)
    centres: dict[str, Tensor]  # this rank's rows, (len(shard), ...), of each centre tensor; any dtype
    shard: range  # class ids of these rows; may be empty
    num_classes: int
    progress: dict[str, Any]  # JSON


def save(root: Path, snapshot: Snapshot, world: World, keep: int) -> Path:
    """Collective. Write <root>/step_<step>, replacing one of the same step; keep the `keep` newest (at least this)."""
    final = root / f"step_{snapshot.step:09d}"
    partial = root / f".{final.name}.partial"
    doing = f"saving {final}"
    kinds = world.gather_objects(_kinds(snapshot))
    _everywhere(world, doing, lambda: _check(snapshot, world, kinds))
    try:
        _everywhere(world, doing, lambda: _open_folder(root, partial) if world.is_main else None)
        _everywhere(world, doing, lambda: _write_own(partial, snapshot, world))
        _everywhere(world, doing, lambda: _write_centres(partial, snapshot, world))
        _everywhere(world, doing, lambda: _publish(partial, final, snapshot, world, keep) if world.is_main else None)
    except CheckpointError:
        if world.is_main:  # give the space back; the failure itself is what the caller must hear of
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


class Saver:
    """Writes the checkpoints of one run into `root`, the `keep` newest of them kept."""

    def __init__(
        self, root: Path, world: World, keep: int, asynchronous: bool = False, keep_best: bool = False
    ) -> None:
        self.root, self.world, self.keep = root, world, keep
        self.asynchronous, self.keep_best = asynchronous, keep_best

    def save(self, snapshot: Snapshot, score: float | None = None) -> Path:
        """Collective. Begin writing, after the one before is finished; its tensors may change once this returns.

        Raises CheckpointError on every rank if this one, or the one before in the background, cannot be written.
        `score`: lower is better; with keep_best, the best one is kept beside the newest.
        """
        return save(self.root, snapshot, self.world, self.keep)

    def wait(self) -> None:
        """Collective. Until the last save is complete; raises CheckpointError on every rank if it failed."""

    def close(self) -> None:
        """Not collective: for the end of a run, failed or not, in a `finally`. Never waits long, never raises."""


def newest(root: Path) -> Path | None:
    """The complete checkpoint with the most steps; one process's view: let one rank choose and tell the others."""
    return next(reversed(complete(root)), None)


def load(path: Path, world: World, shard: range, num_classes: int) -> Snapshot:
    """Collective. What this rank needs of a checkpoint written at any world size.

    At the saved world size `local` is this rank's own. At another it is the same on every rank: floating-point
    "buffer.*" entries are the mean over all saved ranks, "rng.*" entries are absent, others are rank 0's.
    """
    return _everywhere(world, f"loading {path}", lambda: _read(path, world, shard, num_classes))


def _everywhere(world: World, doing: str, action: Callable[[], T]) -> T:
    """Run `action` on every rank; CheckpointError on all of them if it fails on any."""

    def acting() -> T:
        try:
            return action()
        except RowsNotWritten as error:  # raised on every rank: those that failed speak for all
            if world.rank not in error.failures:
                return cast(T, None)
            raise CheckpointError(f"{doing}: {error.failures[world.rank]}") from error
        except PartialKDError as error:
            raise CheckpointError(f"{doing}: {error}") from error
        except Exception as error:
            raise CheckpointError(f"{doing}: {type(error).__name__}: {error}") from error

    return world.together(acting)


# ------------------------------------------------------------------------------------------------- writing


def _kinds(snapshot: Snapshot) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (rows.dtype, tuple(rows.shape[1:])) for name, rows in snapshot.centres.items()}


def _check(snapshot: Snapshot, world: World, kinds: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]]) -> None:
    expected = shard_of(snapshot.num_classes, world.rank, world.size)
    if snapshot.shard != expected:
        raise CheckpointError(f"shard must be {expected} of {snapshot.num_classes} classes, got {snapshot.shard}")
    for name, rows in snapshot.centres.items():
        if len(rows) != len(expected):
            raise CheckpointError(f"centres {name!r} must have {len(expected)} rows, got {len(rows)}")
    if kinds[world.rank] != kinds[0]:
        raise CheckpointError(
            f"centre tensors must be alike on all ranks, rank 0 has {kinds[0]}, got {kinds[world.rank]}"
        )


def _open_folder(root: Path, partial: Path) -> None:
    """A fresh folder to write into. Only rank 0 makes it: a rank that does not see it is on another file system."""
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".step_*.partial"):
        shutil.rmtree(leftover)
    (partial / "local").mkdir(parents=True)
    (partial / "centres").mkdir()


def _write_own(partial: Path, snapshot: Snapshot, world: World) -> None:
    if not partial.is_dir():
        raise CheckpointError(f"{partial} is not there: the folder must be shared by all ranks")
    _write_tensors(partial / "local" / f"{world.rank:05d}.safetensors", snapshot.local)
    if world.is_main:
        _write_tensors(partial / "student.safetensors", snapshot.student)
        write_json(partial / "progress.json", snapshot.progress)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Copies, since safetensors refuses views that share memory (as ZeRO's parameters do)."""
    plain = {key: x.detach().cpu().clone(memory_format=torch.contiguous_format) for key, x in tensors.items()}
    save_file(plain, path)
    sync(path)


def _write_centres(partial: Path, snapshot: Snapshot, world: World) -> None:
    write_rows(partial / "centres", snapshot.centres, snapshot.shard, world.size)


def _publish(partial: Path, final: Path, snapshot: Snapshot, world: World, keep: int) -> None:
    """Manifest, flush, rename; then remove the checkpoints that are too old."""
    files = {
        str(file.relative_to(partial)): file.stat().st_size for file in sorted(partial.rglob("*")) if file.is_file()
    }
    facts = {"format": FORMAT, "step": snapshot.step, "world_size": world.size, "num_classes": snapshot.num_classes}
    for folder in (partial / "local", partial / "centres"):
        sync(folder)
    write_json(partial / "manifest.json", {**facts, "files": files})
    if final.exists():
        _remove(final)
    partial.rename(final)
    sync(final.parent)
    for old in complete(final.parent)[:-keep]:
        if old != final:
            _remove(old)


def _remove(folder: Path) -> None:
    """Out of sight first, so that no half-removed checkpoint is ever seen."""
    hidden = folder.with_name(f".{folder.name}.old.partial")
    folder.rename(hidden)
    shutil.rmtree(hidden)


# ------------------------------------------------------------------------------------------------- reading


def complete(root: Path) -> list[Path]:
    """Complete checkpoints by step, oldest first."""
    found = [path for path in root.glob("step_*") if re.fullmatch(r"step_\d{9,}", path.name)]
    return sorted((path for path in found if _fault(path) is None), key=lambda path: int(path.name[5:]))


def _fault(path: Path) -> str | None:
    """What keeps this folder from being a complete checkpoint of this format; None if nothing does."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"manifest.json: format must be {FORMAT}, got {manifest['format']!r}"
        for name, size in manifest["files"].items():
            actual = (path / name).stat().st_size
            if actual != size:
                return f"{name}: must have {size} bytes, got {actual}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"incomplete: {type(error).__name__}: {error}"
    return None


def _read(path: Path, world: World, shard: range, num_classes: int) -> Snapshot:
    fault = _fault(path)
    if fault:
        raise CheckpointError(fault)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    if manifest["num_classes"] != num_classes:
        raise CheckpointError(f"must hold the centres of {num_classes} classes, got {manifest['num_classes']}")
    return Snapshot(
        step=manifest["step"],
        student=load_file(path / "student.safetensors"),
        local=_read_local(path, manifest["world_size"], world),
        centres=read_rows(path / "centres", shard),
        shard=shard,
        num_classes=num_classes,
        progress=json.loads((path / "progress.json").read_text(encoding="utf-8")),
    )


def _read_local(path: Path, saved_by: int, world: World) -> dict[str, Tensor]:
    files = [path / "local" / f"{rank:05d}.safetensors" for rank in range(saved_by)]
    if saved_by == world.size:
        return load_file(files[world.rank])
    return _shared_local([load_file(file) for file in files])


def _shared_local(saved: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The local state for ranks that are not those that saved, from all of theirs."""
    shared = {key: value for key, value in saved[0].items() if not key.startswith("rng.")}
    for key, value in shared.items():
        if key.startswith("buffer.") and value.is_floating_point():
            shared[key] = torch.stack([one[key].double() for one in saved]).mean(dim=0).to(value.dtype)
    return shared
