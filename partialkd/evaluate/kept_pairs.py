"""The pairs of a verification set as a network saw them, kept in a run's folder: for curves, and to compare runs.

    <run>/scores/<network>/<set>.safetensors    cosines (n,) float64, same (n,) bool, first and second (n,) int64

in the order of the set's file; first and second: the people of each pair.
Errors: `DataError` naming the file: missing, cut short, not of this kind.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from partialkd.errors import DataError
from partialkd.evaluate.intervals import People
from partialkd.evaluate.verification import ScoredPairs
from partialkd.storage.atomic_files import naming, write_bytes

SCORES, ENDING = "scores", ".safetensors"
_KINDS = {"cosines": "float64", "same": "bool", "first": "int64", "second": "int64"}


def write_pairs(run: Path, network: str, sets: dict[str, ScoredPairs]) -> None:
    """Keep them below a run's folder, in the place of earlier ones."""
    folder = run / SCORES / network
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, one in sets.items():
        arrays = {"cosines": one.cosines, "same": one.same, "first": one.people.first, "second": one.people.second}
        whole = {key: np.ascontiguousarray(array, dtype=_KINDS[key]) for key, array in arrays.items()}
        write_bytes(folder / f"{name}{ENDING}", save(whole))


def kept_pairs(run: Path) -> dict[str, dict[str, Path]]:
    """Network -> set -> file, of those that are there."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted((run / SCORES).glob(f"*/*{ENDING}")):
        if not path.name.startswith("."):
            found.setdefault(path.parent.name, {})[path.name.removesuffix(ENDING)] = path
    return found


def read_pairs(path: Path) -> ScoredPairs:
    """Read one file."""
    try:
        arrays = load(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a file of scored pairs: {error}") from error
    if {key: str(array.dtype) for key, array in arrays.items()} != _KINDS:
        raise DataError(f"{path}: not a file of scored pairs: must hold {', '.join(_KINDS)}, got {', '.join(arrays)}")
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or not np.isfinite(arrays["cosines"]).all():
        raise DataError(f"{path}: not a file of scored pairs: lengths differ, or cosines are not finite")
    if min(arrays["first"].min(initial=0), arrays["second"].min(initial=0)) < 0:
        raise DataError(f"{path}: not a file of scored pairs: people are numbered from 0")
    return ScoredPairs(arrays["cosines"], arrays["same"], People(arrays["first"], arrays["second"]))
