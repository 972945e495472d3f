"""Judge a network by identification: a gallery (TinyFace), distractors (MegaFace), everything against everything (MFR).

The sets: data/formats/identification_folder.py, and for all pairs a folder of identities with, possibly, `groups.csv`
(identity,group). What the numbers mean: identification.py and all_pairs.py. An image's embedding is that of the image
plus that of its mirror image (unless `flip` is off), brought to length one. Intervals are by identity (intervals.py);
among distractors that of a TAR is of the probes alone: who the distractors are is not known.
Errors: `DataError` naming the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prettytable import PrettyTable

from partialkd.data.formats.identification_folder import IdentificationSet
from partialkd.data.formats.image_tree import list_images, read_file
from partialkd.data.formats.text_file import read_lines
from partialkd.data.images.decode import Wanted, check_head, decode
from partialkd.errors import DataError
from partialkd.evaluate.all_pair_intervals import REACH, tar_interval
from partialkd.evaluate.all_pairs import BLOCK, all_pairs, among_distractors, check_rates, pairs_of
from partialkd.evaluate.cells import rate_cell, share_cell
from partialkd.evaluate.embedding import Images
from partialkd.evaluate.identification import rank_shares, search
from partialkd.evaluate.intervals import Interval, share_of
from partialkd.evaluate.rates import too_few

RANKS = (1, 5, 10, 20, 100)
FARS = (1e-6, 1e-5, 1e-4, 1e-3)
GROUPS, HEADER, ALL = "groups.csv", "identity,group", "all"


def faces_below(
    folder: Path, names: Sequence[str], image_size: int, resize: bool, stored: Callable[[int], bytes] | None = None
) -> Images:
    """List aligned faces by their paths below a folder; stored: reads those that are no files of their own."""
    wanted = Wanted(image_size, resize, "--resize")
    name = lambda image: str(folder / names[image])

    def encoded(image: int) -> bytes:
        try:
            return stored(image) if stored else read_file(folder / names[image])
        except OSError as error:
            raise DataError(f"{name(image)}: cannot be read: {error.strerror}") from error

    pixels = lambda image: decode(encoded(image), name(image), wanted=wanted)
    look = lambda image: check_head(encoded(image), name(image), wanted)
    return Images(len(names), pixels, name, f"embedding {folder.name}", look)


def unit_rows(embeddings: np.ndarray, flip: bool) -> np.ndarray:
    """Embeddings (2, n, D) -> unit rows (n, D) float32."""
    rows = embeddings[0] + embeddings[1] if flip else embeddings[0]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def check_identification(found: IdentificationSet, fars: Sequence[float]) -> None:
    """DataError for a set with nothing to find, ConfigError for a FAR that is too loose for it."""
    probes, enrolled = found.subjects[: found.probes], found.subjects[found.probes : found.probes + found.gallery]
    if found.gallery:
        if not np.isin(probes, enrolled).any():
            raise DataError(f"{found.folder}: no probe shows a subject of the gallery")
        return
    if len(np.unique(probes)) == len(probes):
        raise DataError(f"{found.folder}: no person has two probes: there is nothing to find")
    check_rates(fars, found.probes * found.distractors, f"{found.folder}: ")


def identified(
    rows: np.ndarray, found: IdentificationSet, ranks: Sequence[int], fars: Sequence[float], device: torch.device
) -> dict[str, Any]:
    """Score unit rows (n, D) of a set's images."""
    probes, subjects = rows[: found.probes], found.subjects[: found.probes]
    counts = {"probes": found.probes, "gallery": found.gallery, "distractors": found.distractors, "noisy": found.noisy}
    if found.gallery:
        searched = search(probes, rows[found.probes :], subjects, found.subjects[found.probes :])
        places, of = searched.before[searched.mated], subjects[searched.mated]
        intervals = {str(rank): list(share_of(places < rank, of)) for rank in ranks}
        shares = {str(rank): share for rank, share in rank_shares(searched, ranks).items()}
        return {"rank": shares, "interval": {"rank": intervals}, **counts}
    others = rows[found.probes :]
    blocks = (others[start : start + BLOCK] for start in range(0, len(others), BLOCK))
    among = among_distractors(probes, subjects, blocks, len(others), max(ranks), fars, device)
    of = subjects[among.probe]
    return {
        "rank": {str(rank): among.rank_share(rank) for rank in ranks},
        "interval": {"rank": {str(rank): list(share_of(among.before < rank, of)) for rank in ranks}},
        "tar_at_far": {
            f"{far:g}": _rate(among.tar(far), far, among.impostors, share_of(among.mates > among.threshold(far), of))
            for far in fars
        },
        "impostors": among.impostors,
        **counts,
    }


def _rate(tar: float, far: float, impostors: int, interval: Interval) -> dict[str, Any]:
    return {"tar": tar, "interval": list(interval), "too_few_impostors": too_few(far, impostors)}


def read_identities(folder: Path) -> tuple[list[str], np.ndarray, dict[str, np.ndarray]]:
    """List a folder of identities -> paths, identities (n,) int64, and for each group which images are in it."""
    trees = list_images(folder)
    names = [f"{identity}/{name}" for identity, images in trees.items() for name in images]
    identities = np.repeat(np.arange(len(trees)), [len(images) for images in trees.values()])
    return names, identities, _groups(folder / GROUPS, list(trees), identities)


def _groups(path: Path, known: list[str], identities: np.ndarray) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    number = {name: at for at, name in enumerate(known)}
    members: dict[str, list[int]] = {}
    lines = read_lines(path)
    if not lines or lines[0][1].strip() != HEADER:
        raise DataError(f"{path}: line 1: must be {HEADER}, got {lines[0][1] if lines else ''!r}")
    for line, text in lines[1:]:
        identity, _, group = (part.strip() for part in text.rpartition(","))
        if identity not in number:
            raise DataError(f"{path}: line {line}: no identity {identity!r} in {path.parent}")
        if group in ("", ALL):
            raise DataError(f"{path}: line {line}: a group must have a name, and not {ALL!r}, got {group!r}")
        members.setdefault(group, []).append(number[identity])
    return {group: np.isin(identities, found) for group, found in members.items()}


def check_all_pairs(folder: Path, identities: np.ndarray, groups: dict[str, np.ndarray], loosest: float) -> None:
    """DataError for images or a group without pairs of both kinds, ConfigError for a FAR that is too loose."""
    for name, inside in {"": np.ones(len(identities), dtype=bool), **groups}.items():
        genuine, impostors = pairs_of(identities[inside])
        where = f"{folder / GROUPS}: group {name!r}" if name else f"{folder}"
        if not (genuine and impostors):
            rule = "must hold pairs of both kinds"
            raise DataError(f"{where}: {rule}, got {genuine} of one person and {impostors} of two")
        check_rates((REACH * loosest,), impostors, f"{where}: ")


def everything(
    rows: np.ndarray, identities: np.ndarray, groups: dict[str, np.ndarray], fars: Sequence[float], device: torch.device
) -> dict[str, Any]:
    """Score all pairs of unit rows (n, D), and those within each group."""
    parts = {ALL: np.ones(len(rows), dtype=bool), **groups}
    return {name: _all_of(rows[inside], identities[inside], fars, device) for name, inside in parts.items()}


def _all_of(rows: np.ndarray, identities: np.ndarray, fars: Sequence[float], device: torch.device) -> dict[str, Any]:
    found = all_pairs(rows, identities, (REACH * max(fars),), device)
    rates = {
        f"{far:g}": _rate(found.tar(far), far, found.impostors, tar_interval(found, identities, far)) for far in fars
    }
    return {"tar_at_far": rates, "genuine": len(found.genuine), "impostors": found.impostors}


def shares_table(rows: dict[str, dict[str, Any]], name: str) -> PrettyTable:
    """Ranks and accept rates in per cent, a line each; a dash where there are too few impostors."""
    first = next(iter(rows.values()))
    ranks, fars = list(first.get("rank", {})), list(first.get("tar_at_far", {}))
    table = PrettyTable([name, *(f"rank-{rank} %" for rank in ranks), *(f"TAR % @ FAR {far}" for far in fars)])
    for who, found in rows.items():
        places = [share_cell(found["rank"][rank], found["interval"]["rank"][rank]) for rank in ranks]
        rates = [(found["tar_at_far"][far], float(far)) for far in fars]
        tars = [rate_cell(rate["tar"], rate["interval"], far, found["impostors"]) for rate, far in rates]
        table.add_row([who, *places, *tars])
    return table
