"""Centres from a teacher: the mean embedding of every class, or the rows of its saved classifier.

Each rank fills its own shard. Class means take one pass over the embeddings of the records (the teacher's, or kept
ones): a batch's normalised embeddings and labels are gathered, and every rank adds those of its classes to two
accumulations, the sums (R, D) and the counts (R,), float32, where the store is; beside the store nothing else grows
with R, and no rank ever holds (C, D). A class without records stays unseen: it is no negative.

A classifier is a file with one matrix (K, D): .npy, .safetensors or .pt. Which of its rows is which class is
always said: `label_map` is a text file whose line k holds the class id of row k, or -1 for a row that is not
used, or the word "identity" where row k is class k. A folder of arcface_torch is one too (classifier.py reads both).

Saved as <folder>/{centres/, manifest.json}, the manifest written last: teacher and data fingerprints, how the
centres were made and images decoded, their shape, size and checksum of every file. Centres whose manifest says
something else are made again, never reused (one of earlier versions does not say the decoding and is believed); damaged
ones are an error.
Errors: TeacherError or CheckpointError naming the file, on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from partialkd.centres.broken_rows import centre_problem
from partialkd.centres.store import CentreStore, saved_centres
from partialkd.data.batch import FaceBatch
from partialkd.errors import CheckpointError, TeacherError
from partialkd.storage.atomic_files import discard, hidden_name, replace_folder
from partialkd.storage.finite import first_few
from partialkd.storage.manifest import MANIFEST, read_manifest, write_manifest
from partialkd.storage.sharded_file import read_rows, write_rows
from partialkd.storage.tensor_file import sums_from_json, sums_to_json
from partialkd.world.shard import local_rows
from partialkd.world.world import World

LOOKED_EVERY = 50  # batches of a pass between looks at what the teacher said
WRITTEN_AT_ONCE = 1 << 16  # rows: what writing needs beside the store and the means


def class_means(
    store: CentreStore,
    batches: Iterable[FaceBatch],
    embed: Callable[[FaceBatch], Tensor],
    local_batch: int,
    world: World,
    name: Callable[[int], str],
    who: str = "the teacher",
) -> None:
    """Collective. Fill the store with means of normalised embeddings; every rank has the same number of batches.

    name: what errors call a record; who: whose embeddings they are.
    """
    watched: list[tuple[Tensor, Tensor]] = []  # records (b,) and which of their embeddings no mean can be made of

    def look() -> None:
        """Together, and seldom: it waits for the device."""
        broken = [int(record) for records, bad in watched for record in records[bad.cpu()]]
        watched.clear()
        text = f"{who}'s embedding is zero or not finite: {first_few(map(name, broken))}" if broken else None
        world.agree(text, TeacherError)

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(batches, start=1):
            found = embed(batch)
            watched.append((batch.records, ~found.isfinite().all(1) | ~found.any(1)))
            yield found, batch.labels
            if number % LOOKED_EVERY == 0:
                look()
        look()

    fill_means(store, mean_rows(store.shard, store.dim, rows(), local_batch, world, store.device))


def fill_means(store: CentreStore, means: Tensor) -> None:
    """Fill the store with means (R, D): rows of zeros stand for classes without a record, which stay unseen."""
    for start in range(0, len(means), WRITTEN_AT_ONCE):
        part = means[start : start + WRITTEN_AT_ONCE]
        present = part.any(1).nonzero().squeeze(1)
        store.fill(start + present, part[present])


def mean_rows(
    shard: range,
    dim: int,
    rows: Iterable[tuple[Tensor, Tensor]],
    local_batch: int,
    world: World,
    device: torch.device | None = None,
) -> Tensor:
    """Average rows by class, collectively -> means (R, D).

    rows: (embeddings (b, D), labels (b,)), b <= local_batch, as many on every rank. A mean is that of the class's
    normalised embeddings, zeros without any. Sums run in the order of ranks, then of rows; they are kept on `device`,
    that of the ranks unless it is named.
    """
    sums = torch.zeros(len(shard), dim, device=device or world.device)
    counts = torch.zeros(len(shard), device=sums.device)
    for own, own_labels in rows:
        embeddings = torch.zeros(local_batch, dim, device=world.device)
        labels = torch.full((local_batch,), -1, device=world.device)
        if len(own):
            embeddings[: len(own)] = F.normalize(own)
            labels[: len(own)] = own_labels
        owned, row = local_rows(world.all_gather(labels), shard)
        places = row[owned].to(sums.device)
        sums.index_add_(0, places, world.all_gather(embeddings)[owned].to(sums.device))
        counts.index_add_(0, places, torch.ones_like(places, dtype=counts.dtype))
    return sums.div_(counts.clamp_min_(1)[:, None])


def load_or_make(
    store: CentreStore,
    folder: Path,
    facts: dict[str, Any],
    make: Callable[[CentreStore], None],
    world: World,
    begun: bool = False,
) -> None:
    """Collective. Fill the store from `folder` if its manifest says `facts`, else by `make`, and save it there.

    begun: a student has learnt with what is there, so that other facts are an error.
    """
    if begun:
        world.on_main(lambda: _check_same(folder, facts))
    facts = {**facts, "classes": store.num_classes, "dim": store.dim, "store": str(store.unit.dtype)}
    if world.on_main(lambda: _are_of(folder, facts)):
        saved = world.together(lambda: _saved_rows(folder, store.shard))
        store.load_state({name: rows.to(store.device) for name, rows in saved.items()})
        return
    make(store)
    save_centres(store, folder, facts, world)


def _are_of(folder: Path, facts: dict[str, Any]) -> bool:
    saved = _manifest(folder)[0]
    silent = {key: facts[key] for key in ("decoding",) if key in facts}
    return saved is not None and {**silent, **saved} == facts


def _check_same(folder: Path, facts: dict[str, Any]) -> None:
    saved = _manifest(folder)[0] or {}
    changes = [f"{key} {saved[key]!r}, now {now!r}" for key, now in facts.items() if key in saved and saved[key] != now]
    if changes:
        rule = "the student has begun with these centres, and is not gone on with by others"
        raise TeacherError(f"{folder}: {rule}: made from {'; '.join(changes)}")


def _check_made(folder: Path, facts: dict[str, Any]) -> None:
    saved = _manifest(folder)[0] or {}
    if any(key in saved and saved[key] != value for key, value in facts.items()):
        raise TeacherError(f"{folder}: these centres were not made together with the network beside them")


def save_centres(store: CentreStore, folder: Path, facts: dict[str, Any], world: World) -> None:
    """Collective. Write the centres, without moments, and then the manifest; what was there before stays until then."""
    problem = centre_problem(store)
    world.agree(f"{folder}: not written: {problem}" if problem else None, CheckpointError)
    hidden = world.on_main(lambda: _hidden(folder))
    try:
        own = world.together(lambda: write_rows(hidden / "centres", store.tensors(), store.shard))
        files = {name: total for files in world.gather_objects(own) for name, total in files.items()}
        world.on_main(lambda: write_manifest(hidden, {**facts, "files": sums_to_json(files)}))
        world.on_main(lambda: replace_folder(hidden, folder))
    finally:
        if world.is_main:
            discard(hidden)


def load_centres(
    store: CentreStore,
    folder: Path,
    project: Callable[[Tensor], Tensor],
    world: World,
    facts: dict[str, Any] | None = None,
) -> None:
    """Fill the store with saved centres, projected as the teacher's embeddings are; collective.

    facts: what their manifest must say, as far as it says anything of it.
    """
    world.on_main(lambda: _check_made(folder, facts or {}))
    saved = world.together(lambda: _saved_rows(folder, store.shard))
    rows = saved_centres(saved).to(store.device)
    store.fill(slice(None), world.together(lambda: checked_rows(project(rows), store.dim, folder)))


def _hidden(folder: Path) -> Path:
    """Make a hidden folder that is to become `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = hidden_name(folder)
    (hidden / "centres").mkdir(parents=True)
    return hidden


def checked_rows(rows: Tensor, dim: int, path: Path) -> Tensor:
    """Return the rows (n, dim) themselves; TeacherError naming their file if they cannot be centres."""
    if rows.shape[1] != dim:
        raise TeacherError(f"{path}: rows must have {dim} numbers, got {rows.shape[1]}")
    if not (rows.isfinite().all(1) & (rows.norm(dim=1) > 0)).all():
        raise TeacherError(f"{path}: holds rows that are zero or not finite")
    return rows


def _manifest(folder: Path) -> tuple[Any, Any]:
    """Read what the centres are, and their files; None where there is no manifest, or an older one without files."""
    facts = read_manifest(folder, CheckpointError) if (folder / MANIFEST).exists() else {}
    files = facts.pop("files", None)
    return (None if files is None else facts), files


def _saved_rows(folder: Path, shard: range) -> dict[str, Tensor]:
    _, files = _manifest(folder)
    if files is None:
        raise CheckpointError(f"{folder / MANIFEST}: must name the files of the centres")
    return read_rows(folder / "centres", sums_from_json(files), shard)
