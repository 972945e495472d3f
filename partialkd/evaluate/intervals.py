"""Intervals of 95 % by identity: how much a number would move if other people had been drawn.

Pairs that share a person are not independent, so that an interval by pairs is too narrow. Here a number's variance is
the sum over identities of (the sum of the residuals of all pairs it is in)^2, less what pairs of two identities would
be counted twice (the dyadic cluster-robust variance of Fafchamps & Gubert 2007; Aronow, Samii & Assenova 2015), and not
less than if pairs were independent. It is what resampling identities estimates, without drawing: the plain resampling
of identities is up to twice too wide where each identity is in few impostor pairs (LFW), and costs a thousand passes
over eight million pairs.

Shapes: residuals (n,) of pairs, first and second (n,) their identities, any integers from 0; a genuine pair has the
same identity twice, and so has what belongs to one person alone (a probe).

share       Wilson's interval with the effective number of pairs p (1 - p) / variance (Korn & Graubard 1998)
threshold   of a false accept rate: the impostors' quantiles at the limits of a Poisson number of accepted ones, of
            which there are effectively fewer by the same effect
tar         of a false accept rate: the interval of the share at the threshold joined with that of the threshold, as
            Zou & Donner (2008) join the limits of a sum
auc         normal on the logit scale, from the placement of each score among those of the other kind
difference  of two networks on the same pairs: normal, from the residuals' differences
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, sqrt

import numpy as np

from partialkd.evaluate.rates import share_above, strict_threshold

Z = 1.959964  # two-sided 95 %
Interval = tuple[float, float]
LOOSER = 1.5  # how much identities matter is judged at this multiple of a rate: at its own, few people tell too little


@dataclass(frozen=True)
class People:
    """Whose images the pairs (or probes) are of."""

    first: np.ndarray  # (n,) integers
    second: np.ndarray  # (n,) integers

    @classmethod
    def single(cls, who: np.ndarray) -> People:
        """Each entry belongs to one person."""
        return cls(who, who)

    @classmethod
    def strangers(cls, same: np.ndarray) -> People:
        """Nobody is in two pairs: same (n,) bool."""
        first = np.arange(len(same))
        return cls(first, np.where(same, first, first + len(same)))

    def __getitem__(self, chosen: np.ndarray) -> People:
        return People(self.first[chosen], self.second[chosen])

    def spread(self, residuals: np.ndarray) -> float:
        """Half the width of the interval of the *sum* of residuals (n,).

        The normal quantile is widened as Student's is, with the degrees of freedom of a variance that is the sum of the
        squared totals of the identities (Satterthwaite's): few people in the tail of the scores know little of it.
        """
        count = int(max(self.first.max(initial=0), self.second.max(initial=0))) + 1
        apart = self.first != self.second
        totals = np.bincount(self.first, residuals, count)
        totals += np.bincount(self.second[apart], residuals[apart], count)
        squares = residuals * residuals
        return half_width(totals, float(squares[apart].sum()), float(squares.sum()))


def half_width(totals: np.ndarray, twice: float, squares: float) -> float:
    """Half the width of the interval of a sum of residuals.

    totals (identities,): sum of the residuals of all pairs that each is in. twice: squares of those of two identities;
    squares: of all.
    """
    by_person = totals * totals
    variance = max(float(by_person.sum()) - twice, squares)
    if variance == 0:
        return 0.0
    fourth = float((by_person * by_person).sum())
    if fourth == 0:  # every person's residuals cancel: one hit and one miss each
        return Z * sqrt(variance)
    freedom = max(3.0, 3 * float(by_person.sum()) ** 2 / fourth)
    return student(freedom) * sqrt(variance)


def student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t, by its expansion in 1 / freedom (Abramowitz & Stegun 26.7.5)."""
    z = Z
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def share(events: np.ndarray, people: People) -> Interval:
    """Interval of the mean of events (n,) that are 0 or 1."""
    n, p = len(events), float(events.mean())
    if p in (0.0, 1.0):  # no residual tells how much identities matter: count them, not pairs
        return wilson(p, len(np.unique(np.concatenate([people.first, people.second]))))
    return wilson(p, n * _effective_part(events, people, p))


def share_of(events: np.ndarray, who: np.ndarray) -> Interval:
    """Interval of the mean of events (n,) that each belong to one person, (n,)."""
    return share(events.astype(float), People.single(who))


def _effective_part(events: np.ndarray, people: People, p: float) -> float:
    """Effective number of pairs per pair: 1 where pairs are as good as independent."""
    return min(1.0, p * (1 - p) * len(events) * (Z / people.spread(events - p)) ** 2)


def wilson(p: float, n: float) -> Interval:
    """Interval of a share p of n independent ones."""
    middle, half = (p + Z * Z / (2 * n)), Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + Z * Z / n)), min(1.0, (middle + half) / (1 + Z * Z / n))


class Impostors:
    """Scores of impostor pairs (n,), sorted once, and whose they are."""

    def __init__(self, scores: np.ndarray, people: People) -> None:
        self.scores, self.people, self.ordered = scores, people, np.sort(scores)
        apart = people.first != people.second
        count = int(max(people.first.max(), people.second.max())) + 1
        self.pairs = np.bincount(people.first, minlength=count) + np.bincount(people.second[apart], minlength=count)

    def threshold(self, far: float) -> float:
        """The strict one (rates.py)."""
        return strict_threshold(self.ordered, far)

    def limits(self, far: float) -> Interval:
        """Interval of the threshold that lets a share `far` pass; not finite where nothing limits it."""
        accepted = self.people[self.scores > self.threshold(LOOSER * far)]
        part = effective_part(accepted, self.pairs, len(self.scores))
        fewest, most = accepted_counts(far * len(self.scores), part)
        return _quantile(self.ordered, most), _quantile(self.ordered, fewest)


def threshold(impostor: np.ndarray, people: People, far: float) -> Interval:
    """Interval of the threshold that lets a share `far` of all impostors pass; not finite where nothing limits it."""
    return Impostors(impostor, people).limits(far)


def effective_part(accepted: People, pairs: np.ndarray, total: int) -> float:
    """Effective number of impostor pairs per pair, judged by the people of those accepted.

    pairs (identities,): how many of all `total` pairs each person is in.
    """
    count = len(accepted.first)
    p = count / total
    if not 0 < p < 1:
        return 1.0
    apart = accepted.first != accepted.second
    totals = np.bincount(accepted.first, minlength=len(pairs)) - p * pairs
    totals += np.bincount(accepted.second[apart], minlength=len(pairs))
    squares = count * (1 - p) ** 2 + (total - count) * p**2
    twice = squares if apart.all() else 0.0  # either all are of two people, or each belongs to one (a probe)
    return min(1.0, p * (1 - p) * total * (Z / half_width(totals, twice, squares)) ** 2)


def accepted_counts(expected: float, part: float) -> Interval:
    """How many impostors are accepted where `expected` are on average, effectively `part` of them independent."""
    root = sqrt(expected * part + 0.375)  # a Poisson number's is nearly normal with deviation one half (Anscombe 1948)
    fewest, most = (((max(0.0, root + side * Z / 2)) ** 2 - 0.375) / part for side in (-1, 1))
    return fewest, most


def _quantile(ordered: np.ndarray, count: float) -> float:
    """The score that `count` of the sorted ones are above, between two of them for a part of one."""
    n = len(ordered)
    if count < 0.5 or count > n - 0.5:
        return float("inf") if count < 0.5 else float("-inf")
    return float(np.interp(n - count - 0.5, np.arange(n), ordered))


def tar(genuine: np.ndarray, of: People, impostors: Impostors, far: float) -> Interval:
    """Interval of the share of genuine pairs above the threshold of a false accept rate."""
    accepted = (genuine > impostors.threshold(far)).astype(float)
    return joined(genuine, float(accepted.mean()), share(accepted, of), impostors.limits(far))


def joined(genuine: np.ndarray, p: float, own: Interval, limits: Interval) -> Interval:
    """Interval of a share p above a threshold: that of the share itself joined with what the threshold's limits do."""
    ordered = np.sort(genuine)
    best, worst = (share_above(ordered, limit) for limit in limits)
    return max(0.0, p - sqrt((p - own[0]) ** 2 + (p - worst) ** 2)), min(
        1.0, p + sqrt((own[1] - p) ** 2 + (best - p) ** 2)
    )


def auc(genuine: np.ndarray, of: People, impostor: np.ndarray, between: People) -> Interval:
    """Interval of the area under the ROC curve."""
    above, below = placements(genuine, impostor)
    area = float(above.mean())
    residuals = np.concatenate([(above - area) / len(above), (below - area) / len(below)])
    people = People(np.concatenate([of.first, between.first]), np.concatenate([of.second, between.second]))
    if not 0 < area < 1:
        return area, area
    middle, half = log(area / (1 - area)), people.spread(residuals) / (area * (1 - area))
    return _logistic(middle - half), _logistic(middle + half)


def placements(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of impostors below each genuine score (g,), of genuine scores above each impostor (i,); ties one half."""
    ordered, other = np.sort(impostor), np.sort(genuine)
    return _rank(ordered, genuine), 1 - _rank(other, impostor)


def _rank(ordered: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Share of sorted scores below each of others, (n,); an equal one counts one half."""
    counts = np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")
    return counts / (2 * len(ordered))


def _logistic(x: float) -> float:
    return 1 / (1 + exp(-x)) if x > -700 else 0.0


def mean_difference(one: np.ndarray, other: np.ndarray, people: People) -> tuple[float, Interval]:
    """How much larger the mean of `one` (n,) is than that of `other` (n,) of the same pairs, and its interval."""
    difference = one.astype(float) - other
    mean = float(difference.mean())
    half = people.spread(difference - mean) / len(difference)
    return mean, (mean - half, mean + half)


def auc_difference(ones: np.ndarray, others: np.ndarray, same: np.ndarray, people: People) -> tuple[float, Interval]:
    """How much larger the area under one kind of network's ROC curve is than another's, and its interval by identity.

    ones, others: scores (runs, n) of the same pairs, a row for each run of that kind; mean over them. same (n,) bool.
    """
    parts, areas = zip(*(_mean_placement_errors(scores, same) for scores in (ones, others)), strict=True)
    difference = areas[0] - areas[1]
    half = people.spread(parts[0] - parts[1])
    return difference, (difference - half, difference + half)


def _mean_placement_errors(runs: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, float]:
    """What each pair adds to the error of the mean area of some runs (n,), to first order; that area."""
    parts, total = np.zeros(len(same)), 0.0
    for scores in runs:
        above, below = placements(scores[same], scores[~same])
        area = float(above.mean())
        parts[same] += (above - area) / len(above)
        parts[~same] += (below - area) / len(below)
        total += area
    return parts / len(runs), total / len(runs)


def tar_difference(
    one: np.ndarray, other: np.ndarray, same: np.ndarray, people: People, far: float
) -> tuple[float, Interval]:
    """How much larger one network's TAR at a FAR is than another's; scores (n,) of the same pairs, same (n,) bool."""
    influences, shares = zip(*(_influence(scores, same, far) for scores in (one, other)), strict=True)
    difference = shares[0] - shares[1]
    half = people.spread(influences[0] - influences[1])
    return difference, (difference - half, difference + half)


def _influence(scores: np.ndarray, same: np.ndarray, far: float) -> tuple[np.ndarray, float]:
    """What each pair adds to the error of the TAR at a FAR (n,), to first order; the TAR."""
    genuine, impostor = np.sort(scores[same]), np.sort(scores[~same])
    at = strict_threshold(impostor, far)
    rate = share_above(genuine, at)
    slope = _slope(genuine, impostor, far)
    accepted = scores > at
    parts = np.empty(len(scores))
    parts[same] = (accepted[same] - rate) / len(genuine)
    parts[~same] = -slope * (accepted[~same] - share_above(impostor, at)) / len(impostor)
    return parts, rate


def _slope(genuine: np.ndarray, impostor: np.ndarray, far: float, reach: float = 0.5) -> float:
    """How fast the TAR grows with the FAR, between half of it and one and a half."""
    rates = [share_above(genuine, strict_threshold(impostor, far * (1 + sign * reach))) for sign in (-1, 1)]
    return (rates[1] - rates[0]) / (2 * reach * far)


def mean_of_groups(groups: Sequence[tuple[float, Sequence[float]]]) -> Interval:
    """Interval of the mean of numbers, each with its interval, of different people (Zou & Donner 2008)."""
    mean = sum(value for value, _ in groups) / len(groups)
    below, above = (sqrt(sum((value - ends[side]) ** 2 for value, ends in groups)) / len(groups) for side in (0, 1))
    return mean - below, mean + above


def finite(interval: Interval) -> list[float | None]:
    """For JSON: an end without a limit is null."""
    return [end if isfinite(end) else None for end in interval]


def identities_of_pairs(first: np.ndarray, second: np.ndarray, same: np.ndarray) -> People:
    """Tell people apart in a list of pairs (n,) of image numbers: images joined by genuine pairs are of one person.

    An image that is in no genuine pair is taken for a person of its own: a list of pairs says no more.
    """
    parent = np.arange(int(max(first.max(), second.max())) + 1)

    def root(image: int) -> int:
        while parent[image] != image:
            parent[image] = parent[parent[image]]
            image = int(parent[image])
        return image

    for a, b in zip(first[same].tolist(), second[same].tolist(), strict=True):
        parent[root(a)] = root(b)
    roots = np.array([root(image) for image in range(len(parent))], dtype=np.int32)
    return People(roots[first], roots[second])
