"""Pair verification: how well cosines tell pairs of one person from pairs of two.

Shapes: cosines (n,) float, same (n,) bool, in the order of the file, which is the order of the folds. All shares
are in [0, 1]. Arithmetic in float64, so that the result is a function of the cosines alone.

accuracy   InsightFace's protocol: consecutive folds (the first ones take the remainder); in each, the threshold
           with the best accuracy on the other folds, the strictest among equals, from the squared distances
           0, 0.01 ... 3.99 of the normalised embeddings, d = 2 - 2 cosine; "same" means d < threshold. Mean and
           (population) standard deviation over the folds.
threshold  mean over the folds, as a cosine.
auc        share of (same, different) couples ordered rightly, a tie counting one half: exact, no curve.
tar_at_far for each far: the share of same pairs accepted at the loosest threshold at which at most far of the
           different pairs are. No interpolation: with n different pairs, a far below 1 / n accepts none of them.

interval   by identity, 95 %, of each of these but the threshold (intervals.py); None where nothing limits it.
too_few_impostors: whether a far is below 1 / n, so that its share says nothing.

Errors: `DataError` for NaN or infinite cosines, lengths that differ, no pairs of one kind, fewer pairs than folds.
Source: deepinsight/insightface, recognition/arcface_torch/eval/verification.py (the protocol, not the code).
Differs: that file's rate at a far interpolates over the grid of thresholds and averages folds; here all pairs count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from partialkd.errors import DataError
from partialkd.evaluate import intervals
from partialkd.evaluate.intervals import Impostors, People
from partialkd.evaluate.rates import share_above, strict_threshold, too_few

DISTANCES = np.arange(0.0, 4.0, 0.01)  # candidate thresholds on the squared distance


@dataclass(frozen=True)
class PairScores:
    """What a verification set says about a network; shares in [0, 1]."""

    accuracy: float
    accuracy_std: float
    auc: float
    threshold: float  # cosine
    tar_at_far: dict[str, float]  # "0.001" -> share of same pairs accepted
    pairs: int
    impostors: int = 0  # pairs of two people
    interval: dict[str, Any] = field(default_factory=dict)  # {"accuracy": [low, high], "tar_at_far": {"0.001": ...}}
    too_few_impostors: dict[str, bool] = field(default_factory=dict)  # by far

    def numbers(self) -> dict[str, tuple[float, Sequence[float]]]:
        """-> {"accuracy" | "auc" | "tar@<far>": (value, interval)}, without rates of too few impostors."""
        found: dict[str, tuple[float, Sequence[float]]] = {
            key: (getattr(self, key), self.interval.get(key, ())) for key in ("accuracy", "auc")
        }
        ends = self.interval.get("tar_at_far", {})
        enough = {far: tar for far, tar in self.tar_at_far.items() if not self.too_few_impostors.get(far)}
        return found | {f"tar@{far}": (tar, ends.get(far, ())) for far, tar in enough.items()}


def score_pairs(
    cosines: np.ndarray, same: np.ndarray, folds: int, fars: Iterable[float], people: People | None = None
) -> PairScores:
    """cosines (n,), same (n,) bool in fold order -> scores. people: whose images the pairs are of; None: all differ."""
    cosines, same = np.asarray(cosines, dtype=np.float64), np.asarray(same, dtype=bool)
    check_cosines(cosines, same)
    check_pairs(same, folds)
    people = people or People.strangers(same)
    accuracies, thresholds = fold_accuracies(cosines, same, folds)
    genuine, impostor = np.sort(cosines[same]), np.sort(cosines[~same])
    rates = [float(far) for far in fars]
    return PairScores(
        accuracy=float(accuracies.mean()),
        accuracy_std=float(accuracies.std()),
        auc=area_under_curve(genuine, impostor),
        threshold=float(thresholds.mean()),
        tar_at_far={f"{far:g}": share_above(genuine, strict_threshold(impostor, far)) for far in rates},
        pairs=len(same),
        impostors=len(impostor),
        interval=_intervals(cosines, same, right_pairs(cosines, same, thresholds), rates, people),
        too_few_impostors={f"{far:g}": too_few(far, len(impostor)) for far in rates},
    )


def right_pairs(cosines: np.ndarray, same: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Which pairs (n,) bool are judged rightly by the threshold of their fold, (folds,)."""
    parts = np.array_split(np.arange(len(same)), len(thresholds))
    own = np.repeat(thresholds, [len(part) for part in parts])
    return (2.0 - 2.0 * cosines < 2.0 - 2.0 * own) == same


def _intervals(
    cosines: np.ndarray, same: np.ndarray, right: np.ndarray, fars: Iterable[float], people: People
) -> dict[str, Any]:
    genuine, of, impostor, between = cosines[same], people[same], cosines[~same], people[~same]
    impostors = Impostors(impostor, between)
    return {
        "accuracy": list(intervals.share(right.astype(float), people)),
        "auc": list(intervals.auc(genuine, of, impostor, between)),
        "tar_at_far": {f"{far:g}": list(intervals.tar(genuine, of, impostors, far)) for far in fars},
    }


def fold_accuracies(cosines: np.ndarray, same: np.ndarray, folds: int) -> tuple[np.ndarray, np.ndarray]:
    """-> accuracy of each fold (folds,), the cosine threshold the other folds chose for it (folds,)."""
    parts = np.array_split(np.arange(len(same)), folds)
    distances = 2.0 - 2.0 * cosines
    right = np.stack([_right(distances[part], same[part]) for part in parts])  # (folds, thresholds)
    chosen = (right.sum(axis=0) - right).argmax(axis=1)  # first maximum: the strictest
    sizes = np.array([len(part) for part in parts])
    return right[np.arange(folds), chosen] / sizes, 1.0 - DISTANCES[chosen] / 2.0


def area_under_curve(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """Sorted cosines of both kinds -> share of couples with genuine > impostor, ties one half."""
    below = np.searchsorted(impostor, genuine, side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(impostor, genuine, side="right").sum(dtype=np.int64)
    return float((below + not_above) / (2 * len(genuine) * len(impostor)))


def _right(distances: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Pairs judged rightly at each candidate threshold, (thresholds,) int64."""
    accepted_same = np.searchsorted(np.sort(distances[same]), DISTANCES, side="left")
    accepted_different = np.searchsorted(np.sort(distances[~same]), DISTANCES, side="left")
    return accepted_same + (~same).sum() - accepted_different


def check_pairs(same: np.ndarray, folds: int) -> None:
    """DataError if pairs like these, (n,) bool, cannot be scored whatever the network says."""
    if len(same) < folds:
        raise DataError(f"must hold at least as many pairs as folds ({folds}), got {len(same)}")
    if not 0 < same.sum() < len(same):
        raise DataError(f"must hold pairs of both kinds, got {same.sum()} of one person among {len(same)}")


def check_cosines(cosines: np.ndarray, same: np.ndarray) -> None:
    """DataError for what no score can be made of."""
    if cosines.ndim != 1 or cosines.shape != same.shape:
        raise DataError(f"cosines and same must be (n,) alike, got {cosines.shape} and {same.shape}")
    if not np.isfinite(cosines).all():
        first = int(np.flatnonzero(~np.isfinite(cosines))[0])
        raise DataError(f"cosines must be finite, got {cosines[first]} for pair {first}")
