"""Shares accepted at a threshold, and thresholds at a false accept rate (FAR).

Shapes: genuine (g,) and impostor (i,) scores of one kind of pairs each, any order unless said. A pair is accepted where
its score is *above* the threshold.

strict      the loosest threshold at which at most far * i impostors are accepted: with fewer than 1 / far impostors
            none of them is. What a promise about false accepts needs.
published   the point of the ROC curve whose false accept rate is *nearest* to far, which may lie above it. What
            InsightFace's tables of IJB-B and IJB-C print: the curve of scikit-learn's roc_curve with its collinear
            points left out, the largest share among the points that are equally near.
Source of `published`: deepinsight/insightface, recognition/_evaluation_/ijb/ijb_11.py (the protocol, not the code).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OperatingPoint:
    """What is accepted at one false accept rate; shares in [0, 1]."""

    tar: float  # of genuine pairs, strict
    threshold: float  # that goes with it; -inf where every impostor may be accepted
    far_reached: float  # of impostors at that threshold: at most the rate asked for
    tar_published: float
    far_published: float  # of impostors at the published point: may be above the rate asked for


def allowed(far: float, impostors: int) -> int:
    """How many impostors a false accept rate lets pass."""
    return int(far * impostors + 1e-9)  # 0.29 * 100 is 28.999...


def too_few(far: float, impostors: int) -> bool:
    """Whether the number of impostor pairs cannot show the rate at all: below 1 / far."""
    return allowed(far, impostors) < 1


def strict_threshold(impostor: np.ndarray, far: float) -> float:
    """Sorted impostor scores -> the score of the first one refused, -inf if none is."""
    passing = allowed(far, len(impostor))
    return float(impostor[len(impostor) - 1 - passing]) if passing < len(impostor) else float("-inf")


def share_above(ordered: np.ndarray, threshold: float) -> float:
    """Sorted scores -> share above the threshold."""
    return float((len(ordered) - np.searchsorted(ordered, threshold, side="right")) / len(ordered))


def operating_points(genuine: np.ndarray, impostor: np.ndarray, fars: Iterable[float]) -> dict[float, OperatingPoint]:
    """Score the pairs at each rate. Time is that of two sorts, memory some arrays of all scores."""
    return points_of_sorted(np.sort(genuine), np.sort(impostor), fars)


def points_of_sorted(genuine: np.ndarray, impostor: np.ndarray, fars: Iterable[float]) -> dict[float, OperatingPoint]:
    """Do the same with scores that are sorted."""
    fpr, tpr = roc_corners(genuine, impostor)
    points = {}
    for far in fars:
        threshold = strict_threshold(impostor, far)
        nearest = len(fpr) - 1 - int(np.abs(fpr - far)[::-1].argmin())
        points[far] = OperatingPoint(
            share_above(genuine, threshold), threshold, share_above(impostor, threshold),
            float(tpr[nearest]), float(fpr[nearest]),
        )  # fmt: skip
    return points


def roc_corners(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted scores -> false and true accept rates (k,) of the ROC curve's corners, both rising from 0 to 1.

    A point is one distinct score, at which pairs of that score are accepted; a corner is one where the counts of both
    kinds do not go on as before (scikit-learn's drop_intermediate, by second differences).
    """
    scores = _distinct(np.concatenate([genuine, impostor]))[::-1]
    bends = np.zeros(len(scores), dtype=bool)
    bends[[0, -1]] = True
    for ordered in (impostor, genuine):  # one after the other: eight million counts are much memory
        bends[1:-1] |= np.diff(_accepted(ordered, scores).astype(np.int32), 2) != 0
    corners = scores[bends]
    fpr, tpr = (np.concatenate([[0.0], _accepted(ordered, corners) / len(ordered)]) for ordered in (impostor, genuine))
    return fpr, tpr


def _distinct(scores: np.ndarray) -> np.ndarray:
    """Sort scores where they lie -> the different ones; np.unique takes a copy."""
    scores.sort()
    return scores[np.concatenate([[True], scores[1:] != scores[:-1]])]


def _accepted(ordered: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many sorted scores are at each of the thresholds (k,) or above."""
    return len(ordered) - np.searchsorted(ordered, thresholds, side="left")
