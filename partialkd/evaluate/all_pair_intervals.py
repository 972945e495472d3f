"""Intervals by identity of what all pairs say, of whose impostors only the highest are kept (all_pairs.py).

The same as intervals.py has for a list of pairs: with all pairs every identity's number of pairs is known.
"""

from __future__ import annotations

import numpy as np

from partialkd.evaluate.all_pairs import AllPairs
from partialkd.evaluate.intervals import (
    LOOSER,
    Interval,
    People,
    accepted_counts,
    effective_part,
    joined,
    share_of,
)
from partialkd.evaluate.rates import allowed

REACH = 2.0  # times the loosest rate: as many impostors must be kept for its interval


def threshold_interval(found: AllPairs, identities: np.ndarray, far: float) -> tuple[float, float]:
    """Interval of the threshold of all pairs at a rate, as intervals.threshold has it for a list of pairs."""
    part = _effective_part(found, identities, LOOSER * far)
    fewest, most = accepted_counts(far * found.impostors, part)
    return _quantile(found, most), _quantile(found, fewest)


def tar_interval(found: AllPairs, identities: np.ndarray, far: float) -> Interval:
    """Interval of the TAR of all pairs at a rate."""
    own = share_of(found.genuine > found.threshold(far), found.genuine_of)
    return joined(found.genuine, found.tar(far), own, threshold_interval(found, identities, far))


def _effective_part(found: AllPairs, identities: np.ndarray, far: float) -> float:
    """Effective number of impostor pairs per pair, judged by those accepted at a rate."""
    at = allowed(far, found.impostors)
    if not 0 < at < len(found.highest):
        return 1.0
    accepted = found.highest > found.highest[at]
    who, sizes = np.unique(identities, return_counts=True)
    people = People(*(np.searchsorted(who, side[accepted]) for side in (found.first, found.second)))
    return effective_part(people, sizes * (len(identities) - sizes), found.impostors)


def _quantile(found: AllPairs, count: float) -> float:
    """The score that `count` impostors are above, between two of them for a part of one; they are kept falling."""
    if count < 0.5:
        return float("inf")
    if count > len(found.highest) - 0.5:
        return float("-inf")
    return float(np.interp(count - 0.5, np.arange(len(found.highest)), found.highest))
