"""Thresholds of an audit, from the data themselves: when a label is wrong, and when two people are one."""

from __future__ import annotations

from math import log
from statistics import NormalDist

import numpy as np

MOST = 0.5  # share of wrong labels above which the network rather than the labels is at fault
FEWEST = 20  # rows that say how alike people come to be by chance


def wrong_margin(margin: np.ndarray, mislabelled: np.ndarray, found: float = 0.85, right: float = 0.5) -> float:
    """How much nearer another class must be than an image's own for its label to be called wrong.

    margin (n,): of the images as they are labelled. mislabelled (n,): of the same images, had each the label of some
    other class, which is what margins of wrong labels look like. The share `found` of these is above the result, unless
    fewer than the share `right` of the images there would be wrongly labelled: then it is higher. How many labels are
    wrong is told by the upper half of such margins, where hardly a right one comes; of a poor network's some do, and
    then less than the share `right` may be. Infinite where no label can be called wrong, or more than `MOST` would be.
    """
    if not len(margin):
        return float("inf")
    at = np.unique(np.quantile(mislabelled, np.linspace(1 - found, 1, 86)))
    at = at[at > 0]
    above, expected = (_share_above(some, at) for some in (margin, mislabelled))
    share = 2 * (_share_above(margin, np.median(mislabelled)) + 1 / len(margin))  # one more: of few, none may be there
    if share > MOST:
        return float("inf")
    enough = (above > 0) & (share * expected >= right * above)
    return float(at[enough][0]) if enough.any() else float("inf")


def _share_above(values: np.ndarray, thresholds: np.ndarray | np.floating) -> np.ndarray:
    """Share of values (n,) above each threshold (k,)."""
    return 1 - np.searchsorted(np.sort(values), thresholds, side="right") / len(values)


def chance(best: np.ndarray, among: int, wrong: float = 1.0) -> float:
    """How alike somebody else comes to be by chance `wrong` times in all: from the nearest of each, (n,).

    Each of n rows was compared with `among` others, nearly all of them of other people. A nearest one is above t in a
    share 1 - exp(-k) of the rows, k the number expected above t in a row. So the quantiles that only other people make
    (half of the rows to a tenth) tell k there, and their line over normal deviates goes on to the k wanted. Where more
    than a tenth of the rows do have a twin, the threshold rises and less is found.
    """
    if len(best) < FEWEST or among < FEWEST:
        return 1.0  # nothing can be said of so few
    normal, shares = NormalDist(), np.array([0.5, 0.4, 0.3, 0.2, 0.1])
    deviates = [normal.inv_cdf(1 - min(-log(1 - share) / among, 0.5)) for share in shares]
    slope, start = np.polyfit(deviates, np.quantile(best, 1 - shares), 1)
    return float(min(1.0, start + slope * normal.inv_cdf(1 - wrong / (len(best) * among))))
