"""Scores by templates (IJB-B, IJB-C), read from what `launch/evaluate.py --json` left in a run's folder.

`partialkd evaluate RUN --templates IJBC --json RUN/evaluation_ijbc.json`: every `evaluation*.json` is read, and of each
set the share of genuine pairs accepted (TAR) at the FARs that papers print, as published, in the setting N1D1F1.
Errors: `DataError` for a file that is not such a result; `ConfigError` for one of another run's network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partialkd.errors import ConfigError, DataError

FILES = "evaluation*.json"
SETTING = "N1D1F1"  # InsightFace's
FARS = (1e-4, 1e-5)  # of the papers' columns
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TemplateScores:
    """Of one network on one set; shares in [0, 1]."""

    published: dict[float, float]  # FAR -> TAR, at the rate nearest to the one asked for
    interval: dict[float, tuple[float, float]]  # of 95 %, by identity
    pairs: tuple[int, int]  # genuine and of two people


def read_template_scores(folder: Path) -> dict[str, dict[str, TemplateScores]]:
    """Set -> network -> scores, of all files in a run's folder."""
    found: dict[str, dict[str, TemplateScores]] = {}
    for path in sorted(folder.glob(FILES)):
        tree = _tree(path)
        sets = tree.get("templates", {})
        who = _network(path, tree["model"]) if sets else ""
        for name, networks in sets.items():
            if who in found.setdefault(name, {}):
                raise ConfigError(f"{path}: the {who} was scored on {name!r} in another file of this folder, too")
            scores = _scores(path, networks)
            if scores is not None:
                found[name][who] = scores
    return {name: row for name, row in found.items() if row}


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not the JSON of an evaluation ({error})") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), str):
        raise DataError(f"{path}: not the JSON of an evaluation: it names no model")
    if not isinstance(tree.get("templates", {}), dict):
        raise DataError(f"{path}: not the JSON of an evaluation: templates must be a table")
    return tree


def _network(path: Path, model: str) -> str:
    """Whose model it is: RUN/<network>/model.safetensors, or RUN/<network>/checkpoints/<step>."""
    below = Path(model).parent
    below = below.parent if below.name == CHECKPOINTS else below
    run = path.resolve().parent.name
    if below.parent.name != run:
        raise ConfigError(f"{path}: is of {model}, which is no network of the run {run}")
    return below.name


def _scores(path: Path, networks: Any) -> TemplateScores | None:
    """networks: {its file's name: {setting: results}}. None of a set without pairs, or without the FARs."""
    try:
        (settings,) = networks.values()
        found: Mapping[str, Any] = settings[SETTING].get(
            "verification", {"tar_at_far": {}, "genuine": 0, "impostors": 0}
        )
        points = {far: found["tar_at_far"][f"{far:g}"] for far in FARS if f"{far:g}" in found["tar_at_far"]}
        published = {far: float(one["tar_published"]) for far, one in points.items()}
        limits = {
            far: (float(low), float(high)) for far, one in points.items() for low, high in [one["interval_published"]]
        }
        pairs = int(found["genuine"]), int(found["impostors"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not the JSON of an evaluation by templates ({error!r})") from error
    return TemplateScores(published, limits, pairs) if published else None
