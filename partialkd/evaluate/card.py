"""The threshold card of a network: at which cosine to accept, for a false accept rate, and how sure that is.

From all pairs of a folder of identities (all_pairs.py), none of whom the network should have been trained on: for each
rate the strict threshold with its interval of 95 % by identity (intervals.py), the share of genuine pairs above it, and
whether there are too few impostor pairs to say so; the whole curve; and the same within each group, if there are any.
For each precision of the network and with or without the mirrored image added: thresholds differ between these.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prettytable import PrettyTable

from partialkd.errors import ConfigError
from partialkd.evaluate.all_pair_intervals import REACH, tar_interval, threshold_interval
from partialkd.evaluate.all_pairs import AllPairs, all_pairs
from partialkd.evaluate.cells import between, star
from partialkd.evaluate.identification_protocol import unit_rows
from partialkd.evaluate.intervals import finite
from partialkd.evaluate.rates import too_few

FORMAT = "partialkd-thresholds-1"
FARS = (1e-3, 1e-4, 1e-5, 1e-6)
SETTINGS = {"flip": True, "plain": False}
CURVE = 60  # points


def thresholds(
    embeddings: np.ndarray, identities: np.ndarray, groups: dict[str, np.ndarray], device: torch.device
) -> dict[str, Any]:
    """Embeddings (2, n, D), identities (n,) -> {"flip" | "plain": {"all" | group: {"at_far", "curve", ...}}}."""
    parts = {"all": np.ones(len(identities), dtype=bool), **groups}
    return {
        setting: {
            name: _of_part(unit_rows(embeddings[:, inside], flip), identities[inside], device)
            for name, inside in parts.items()
        }
        for setting, flip in SETTINGS.items()
    }


def _of_part(rows: np.ndarray, identities: np.ndarray, device: torch.device) -> dict[str, Any]:
    found = all_pairs(rows, identities, (REACH * max(FARS),), device)
    return {
        "at_far": {f"{far:g}": _at(found, identities, far) for far in FARS},
        "curve": _curve(found),
        "images": len(rows),
        "identities": len(np.unique(identities)),
        "genuine": len(found.genuine),
        "impostors": found.impostors,
    }


def _at(found: AllPairs, identities: np.ndarray, far: float) -> dict[str, Any]:
    threshold = found.threshold(far)
    low, high = threshold_interval(found, identities, far)
    return {
        "threshold": threshold,
        "interval": finite((low, high)),
        "tar": found.tar(far),
        "tar_interval": list(tar_interval(found, identities, far)),
        "too_few_impostors": too_few(far, found.impostors),
    }


def _curve(found: AllPairs) -> list[dict[str, float]]:
    """False accept rate, threshold and TAR, from the loosest rate that was kept to a single impostor."""
    most = len(found.highest) - 1
    counts = np.unique(np.geomspace(1, max(most, 1), CURVE).astype(int)) if most else np.array([], dtype=int)
    genuine = np.sort(found.genuine)
    points = []
    for count in counts.tolist():
        threshold = float(found.highest[count])
        above = len(genuine) - int(np.searchsorted(genuine, threshold, side="right"))
        points.append({"far": count / found.impostors, "threshold": threshold, "tar": above / len(genuine)})
    return points


def compact(card: dict[str, Any]) -> dict[str, Any]:
    """What goes into a network's file: thresholds and intervals, without the curves."""
    keys = ("threshold", "interval", "too_few_impostors")
    return {
        precision: {
            setting: {
                part: {far: {key: one[key] for key in keys} for far, one in found["at_far"].items()}
                for part, found in parts.items()
            }
            for setting, parts in settings.items()
        }
        for precision, settings in card["thresholds"].items()
    }


def read_card(path: Path, fingerprint: str) -> dict[str, Any]:
    """Read a card, which must be of the network with this fingerprint; ConfigError naming the file."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise ValueError(f"its format is {card['format']!r}")
        _check(card)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a threshold card (evaluate.py --card writes one): {error}") from error
    if card["fingerprint"] != fingerprint:
        raise ConfigError(
            f"{path}: the card of another network ({card.get('model')!r}): its thresholds do not hold here"
        )
    return card


def _check(card: dict[str, Any]) -> None:
    """Raise what a card lacks of what is made of it."""
    if not card["thresholds"]:
        raise ValueError("it has no thresholds")
    compact(card)
    for settings in card["thresholds"].values():
        for parts in (settings[setting] for setting in SETTINGS):
            for part in (parts["all"], *parts.values()):
                for far in FARS:
                    _cell(part["at_far"][f"{far:g}"], far, part["impostors"])


def table_of(card: dict[str, Any]) -> PrettyTable:
    """Thresholds with their intervals, a line for each precision, setting and group; a dash: too few impostors."""
    table = PrettyTable(["precision", "images", "people", *(f"cosine @ FAR {far:g}" for far in FARS)])
    table.add_rows(_lines(card))
    return table


def _lines(card: dict[str, Any]) -> list[list[str]]:
    lines = []
    for precision, settings in card["thresholds"].items():
        for setting, parts in settings.items():
            for part, found in parts.items():
                cells = [_cell(one, float(far), found["impostors"]) for far, one in found["at_far"].items()]
                lines.append([precision, setting, part, *cells])
    return lines


def _cell(one: dict[str, Any], far: float, impostors: int) -> str:
    if one["too_few_impostors"]:
        return "-"
    return f"{one['threshold']:.3f}{star(far, impostors)}{between(one['interval'], 1, 3)}"
