"""Thresholds of an audit, from the data themselves: when a label is wrong, and when two people are one."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from statistics import NormalDist

import numpy as np

MOST = 0.5  # share of wrong labels above which the network rather than the labels is at fault
FEWEST = 20  # rows that say how alike people come to be by chance
FIRST, SHARES = (0.8, 0.65, 0.5), (0.5, 0.3, 0.2, 0.1, 0.05, 0.02)  # of the rows: those above a quantile
ABOVE = 10  # rows, at least, above a quantile that fewer than a tenth are above
ROUNDS = 20


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
    tell k there, and their line over normal deviates goes on to the k wanted. Rows with a twin raise these quantiles:
    those above the threshold are set aside and the line is drawn anew, from half of the rows to a fiftieth, until it
    stays. Where a tenth of the rows or more do have a twin, the threshold may stay high, and less is found.
    """
    if len(best) < FEWEST or among < FEWEST:
        return 1.0  # nothing can be said of so few
    threshold = _where_the_line_leads(best, FIRST, (len(best), among), wrong)
    for _ in range(ROUNDS):
        others = best[best <= threshold]
        shares = [share for share in SHARES if share >= 0.1 or share * len(others) >= ABOVE]
        if len(others) < FEWEST:
            break
        if (new := _where_the_line_leads(others, shares, (len(best), among), wrong)) == threshold:
            break
        threshold = new
    return min(1.0, threshold)


def _where_the_line_leads(
    others: np.ndarray, shares: Sequence[float], compared: tuple[int, int], wrong: float
) -> float:
    """Above which score `wrong` of compared = (rows, among) pairs are; others (m,): whom the line is of."""
    normal, (rows, among) = NormalDist(), compared
    deviates = [normal.inv_cdf(1 - min(-log(1 - share) / among, 0.5)) for share in shares]
    slope, start = np.polyfit(deviates, np.quantile(others, 1 - np.array(shares)), 1)
    return float(start + slope * normal.inv_cdf(1 - wrong / (rows * among)))
