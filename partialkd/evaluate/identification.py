"""Identification: whose face is it among those of a gallery, and is it any of them at all?

Shapes: unit rows, probes (p, D) and gallery (g, D), with the subjects (p,) and (g,) they show. Scores are cosines.
Similarities are computed in blocks; no (p, g) matrix is held.

rank-k        share of probes with a mate in the gallery whose best mate is among the k highest scores. An entry of
              somebody else with the same score stands before the mate.
tpir_at_fpir  for each fpir: of the probes with a mate, the share whose best mate scores above the threshold. strict:
              at which at most fpir of the probes *without* a mate find anybody (IJB's open set; ISO/IEC 19795 counts
              them so). published: InsightFace's, with as many scores of *others*, over all probes and the whole
              gallery, as fpir times the number of probes (rounded up).
Source of `published`: deepinsight/insightface, recognition/_evaluation_/ijb/ijb_1n.py (the protocol, not the code).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

import numpy as np

from partialkd.evaluate.largest import Largest
from partialkd.evaluate.rates import share_above, strict_threshold

BLOCK, SCORES = 1024, 1 << 24  # probes at a time, scores at a time


@dataclass(frozen=True)
class Searches:
    """What each of p probes found."""

    mate: np.ndarray  # (p,) score of its best mate; -inf where it has none
    before: np.ndarray  # (p,) int64, entries of others that score at least as much
    other: np.ndarray  # (p,) the highest score of others; -inf where there are none
    others: np.ndarray  # the highest scores of others over all probes, falling: as many as were asked for

    @property
    def mated(self) -> np.ndarray:
        """(p,) bool: which probes have a mate."""
        return np.isfinite(self.mate)


def search(
    probes: np.ndarray, gallery: np.ndarray, subjects: np.ndarray, enrolled: np.ndarray, keep: int = 0
) -> Searches:
    """Search every probe in the gallery. keep: how many of the highest scores of others to return."""
    mate, other = np.full(len(probes), -np.inf), np.full(len(probes), -np.inf)
    before = np.zeros(len(probes), dtype=np.int64)
    highest = Largest(keep)
    block = max(1, min(BLOCK, SCORES // max(1, len(gallery))))
    for start in range(0, len(probes), block):
        part = slice(start, start + block)
        scores = probes[part] @ gallery.T
        own = subjects[part, None] == enrolled[None]
        mate[part] = np.where(own, scores, -np.inf).max(1, initial=-np.inf)
        scores[own] = -np.inf
        other[part] = scores.max(1, initial=-np.inf)
        before[part] = (scores >= mate[part, None]).sum(1)
        if keep:
            highest.add(scores[~own])
    return Searches(mate, before, other, highest.values())


def rank_shares(found: Searches, ranks: Iterable[int]) -> dict[int, float]:
    """-> share of mated probes whose mate is among the first k, for each k."""
    places = found.before[found.mated]
    return {rank: float((places < rank).mean()) for rank in ranks}


def tpir_strict(found: Searches, fpir: float) -> tuple[float, float]:
    """-> share of mated probes identified, the threshold; `fpir` of probes without a mate at most find anybody."""
    threshold = strict_threshold(np.sort(found.other[~found.mated]), fpir)
    return share_above(np.sort(found.mate[found.mated]), threshold), threshold


def published_count(probes: int, fpir: float) -> int:
    """How many scores of others stand above InsightFace's threshold, or at it."""
    return ceil(probes * fpir)


def tpir_published(found: Searches, fpir: float) -> tuple[float, float]:
    """-> share of mated probes identified, the threshold, as InsightFace counts; needs `others` of that many."""
    threshold = float(found.others[published_count(len(found.mate), fpir) - 1])
    return share_above(np.sort(found.mate[found.mated]), threshold), threshold
