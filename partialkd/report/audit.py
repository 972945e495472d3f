"""Look through a data set by a teacher's embeddings: who is wrong, twice there, or two people, and whom one evaluates.

Shapes: unit rows (n, D) float32 of n images, labels (n,) int64 in [0, C). Everything is products of blocks, on any
device; what is held beside the rows is (C, D).

wrong label   the mean of another class is nearer to the image than that of its own class's other images, by a margin
              that most wrong labels have and hardly a right one (`wrong_margin`), among embeddings that were whitened
              within classes (`Audit.whitened`); the margin stands where other findings have a cosine
outlier       none is near: less alike its own class than the typical image is to the nearest other class
duplicate     two images of a class (or of two that are one person) whose cosine is above `duplicate`
one person    two classes whose means are more alike than two people come to be by chance among so many (`chance`)
two people    a class that falls in two parts (spherical 2-means), both of `LEAST` images or more, less alike than
              the typical class and its nearest other one
evaluated     a person of the evaluation sets whose mean is more alike a class than by chance

The thresholds are of the data themselves, and told with the findings. All of this is a list of
suspicions for a person to look through; where many classes hold two people, or the teacher is poor, the thresholds move
and less is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from partialkd.report.audit_thresholds import FEWEST, chance, wrong_margin

BLOCK = 8192  # rows at a time
LEAST = 3  # images of a part of a class
STRANGE = 0.01  # of the images, the farthest from their class, say nothing about how images differ
SHRUNK = 0.1  # of the mean variance, added to that of every direction
KINDS = ("wrong label", "outlier", "duplicate", "one person", "two people", "evaluated")


@dataclass(frozen=True)
class Finding:
    """One suspicion. `other`: a class, or for "evaluated" a person; -1 where there is none."""

    kind: str
    label: int  # the class it is about
    other: int
    images: tuple[int, ...]  # which images show it, a few; of "two people" the first half is of one part
    cosine: float
    threshold: float


@dataclass(frozen=True)
class Nearest:
    """The most alike rows among others: (n,) each."""

    best: np.ndarray
    at: np.ndarray


class Audit:
    """The means of a data set's classes, and what follows from them."""

    def __init__(self, rows: np.ndarray, labels: np.ndarray, classes: int, device: torch.device | str = "cpu") -> None:
        self.rows, self.labels, self.classes, self.device = rows, labels, classes, torch.device(device)
        self.counts = np.bincount(labels, minlength=classes)
        self.sums = np.zeros((classes, rows.shape[1]), dtype=np.float64)
        for part in _parts(len(rows)):
            np.add.at(self.sums, labels[part], rows[part])
        self.means = unit(self.sums).astype(np.float32)
        self._order = np.argsort(labels, kind="stable")
        self._ends = np.concatenate([[0], np.cumsum(self.counts)])

    def images_of(self, label: int) -> np.ndarray:
        """Return the numbers of a class's images."""
        return self._order[self._ends[label] : self._ends[label + 1]]

    def findings(self, duplicate: float = 0.99) -> list[Finding]:
        """All suspicions within the data set."""
        same = self.one_person()
        return [*self.wrong_images(same), *self.duplicates(duplicate, same), *same, *self.two_people()]

    def wrong_images(self, same: list[Finding]) -> list[Finding]:
        """Wrong labels and outliers, the most certain first; an image is not wrong where two classes are one person."""
        twins = {(one.label, one.other) for one in same} | {(one.other, one.label) for one in same}
        own = self._own()
        judged = np.isfinite(own)
        if not judged.any():
            return []
        at, margin, least = self.whitened().wrong_margins()
        wrong = judged & (margin > least)
        nearest = nearest_rows(self.rows, self.means, self.labels, self.device)
        usual, strange = float(np.quantile(own[judged], 0.05)), float(np.median(nearest.best))
        lost = judged & ~wrong & (own < min(strange, usual))
        found = [
            Finding("wrong label", int(self.labels[i]), int(at[i]), (int(i),), float(margin[i]), least)
            for i in np.flatnonzero(wrong)[np.argsort(-margin[wrong], kind="stable")]
            if (int(self.labels[i]), int(at[i])) not in twins
        ]
        order = np.flatnonzero(lost)[np.argsort(own[lost], kind="stable")]
        return found + [
            Finding("outlier", int(self.labels[i]), -1, (int(i),), float(own[i]), min(strange, usual)) for i in order
        ]

    def _own(self) -> np.ndarray:
        """Cosine (n,) of each image with the mean of its class's other images; not finite where there are none."""
        own = np.full(len(self.rows), np.nan)
        for part in _parts(len(self.rows)):
            rows, labels = self.rows[part], self.labels[part]
            others = self.sums[labels] - rows
            lengths = np.linalg.norm(others, axis=1)
            several = (self.counts[labels] > 1) & (lengths > 1e-6)
            own[part][several] = (rows * others).sum(1)[several] / lengths[several]
        return own

    def whitened(self) -> Audit:
        """The same data with directions divided by how much a class's images differ there: (n, D) once more.

        Within-class covariance normalisation (Hatch et al. 2006): what all classes vary in tells nobody apart. Of the
        images nearest to their class alone: a wrong label is far in the very direction that gives it away.
        """
        dim, own = self.rows.shape[1], self._own()
        usual = own >= np.nanquantile(own, STRANGE) if np.isfinite(own).any() else np.isfinite(own)
        within = np.zeros((dim, dim))
        for part in _parts(len(self.rows)):
            apart = (self.rows[part] - self.means[self.labels[part]])[usual[part]]
            within += apart.T @ apart
        within += SHRUNK * np.trace(within) / dim * np.eye(dim)
        if not within.any():
            return self
        values, directions = np.linalg.eigh(within)
        sharpen = (directions / np.sqrt(values)).astype(np.float32)
        rows = np.concatenate([unit(self.rows[part] @ sharpen) for part in _parts(len(self.rows))])
        return Audit(rows, self.labels, self.classes, self.device)

    def wrong_margins(self) -> tuple[np.ndarray, np.ndarray, float]:
        """-> each image's nearest other class, how much nearer it is than its own (n,), from where on that is wrong."""
        own, nearest = self._own(), nearest_rows(self.rows, self.means, self.labels, self.device)
        margin = nearest.best - own
        mislabelled = np.maximum(nearest.best, own) - self._cosines_with_others(nearest.at)
        judged = np.isfinite(margin) & np.isfinite(mislabelled)
        return nearest.at, margin, wrong_margin(margin[judged], mislabelled[judged])

    def _cosines_with_others(self, nearest: np.ndarray) -> np.ndarray:
        """Cosine (n,) of each image with the mean of some class, drawn, that is neither its own nor the nearest one."""
        there = np.flatnonzero(self.counts)
        if len(there) < 3:
            return np.full(len(self.rows), np.nan)
        place, rng = np.searchsorted(there, self.labels), np.random.default_rng(0)
        other = np.searchsorted(there, nearest)
        low, high = np.minimum(place, other), np.maximum(place, other)
        drawn = rng.integers(0, len(there) - 2, len(self.rows))
        drawn += drawn >= low
        drawn += drawn >= high
        cosines = np.empty(len(self.rows))
        for part in _parts(len(self.rows)):
            cosines[part] = (self.rows[part] * self.means[there[drawn[part]]]).sum(1)
        return cosines

    def duplicates(self, least: float, same: list[Finding]) -> list[Finding]:
        """Pairs of images within each class, and between classes that are one person."""
        found = []
        for label in np.flatnonzero(self.counts > 1).tolist():
            images = self.images_of(label)
            found += self._alike(images, images, label, label, least)
        for one in same:
            found += self._alike(self.images_of(one.label), self.images_of(one.other), one.label, one.other, least)
        return found

    def _alike(self, one: np.ndarray, other: np.ndarray, label: int, second: int, least: float) -> list[Finding]:
        found = []
        for start in range(0, len(one), BLOCK):
            cosines = self.rows[one[start : start + BLOCK]] @ self.rows[other].T
            for a, b in np.argwhere(cosines > least).tolist():
                images = int(one[start + a]), int(other[b])
                if label != second or images[0] < images[1]:
                    found.append(Finding("duplicate", label, second, images, float(cosines[a, b]), least))
        return found

    def one_person(self) -> list[Finding]:
        """Classes that are alike."""
        there = np.flatnonzero(self.counts)
        nearest = nearest_rows(self.means[there], self.means[there], np.arange(len(there)), self.device)
        threshold = chance(nearest.best, len(there) - 1, 2.0)
        pairs = {}
        for at in np.flatnonzero(nearest.best > threshold).tolist():
            pair = tuple(sorted((int(there[at]), int(there[nearest.at[at]]))))
            pairs[pair] = float(nearest.best[at])
        ranked = sorted(pairs.items(), key=lambda item: -item[1])
        return [
            Finding("one person", one, other, self._few(one) + self._few(other), cosine, threshold)
            for (one, other), cosine in ranked
        ]

    def two_people(self) -> list[Finding]:
        """Classes that fall in two."""
        there = np.flatnonzero(self.counts)
        if len(there) < FEWEST:
            return []
        nearest = nearest_rows(self.means[there], self.means[there], np.arange(len(there)), self.device)
        threshold = float(np.median(nearest.best))
        found = []
        for label in np.flatnonzero(self.counts >= 2 * LEAST).tolist():
            images = self.images_of(label)
            side, cosine = halves(self.rows[images])
            if min(side.sum(), (~side).sum()) >= LEAST and cosine < threshold:
                shown = (*images[side][:LEAST].tolist(), *images[~side][:LEAST].tolist())
                found.append(Finding("two people", label, -1, shown, cosine, threshold))
        return sorted(found, key=lambda one: one.cosine)

    def evaluated(self, people: np.ndarray) -> list[Finding]:
        """Classes that show a person of unit rows (p, D), the means of those who are evaluated."""
        there = np.flatnonzero(self.counts)
        nearest = nearest_rows(people, self.means[there], np.full(len(people), -1), self.device)
        threshold = chance(nearest.best, len(there))
        at = np.flatnonzero(nearest.best > threshold)
        return [
            Finding(
                "evaluated", int(there[nearest.at[p]]), int(p), self._few(int(there[nearest.at[p]])),
                float(nearest.best[p]), threshold,
            )
            for p in at[np.argsort(-nearest.best[at], kind="stable")]
        ]  # fmt: skip

    def _few(self, label: int) -> tuple[int, ...]:
        return tuple(self.images_of(label)[:LEAST].tolist())


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows (n, D) of length one; zeros stay zeros."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def with_mirrored(plain: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Embeddings (n, D) of images and of their mirror images -> one unit row each."""
    return unit(unit(plain) + unit(mirrored))


def nearest_rows(rows: np.ndarray, among: np.ndarray, own: np.ndarray, device: torch.device | str) -> Nearest:
    """For each of unit rows (n, D) the most alike of others (m, D), its own one (n,) left out; -1: none is own."""
    results = []
    for part in _parts(len(rows)):
        query, mine = torch.from_numpy(np.ascontiguousarray(rows[part])).to(device), torch.from_numpy(own[part])
        best = torch.full((len(query),), -2.0, device=device)
        at = torch.full((len(query),), -1, dtype=torch.int64, device=device)
        for start in range(0, len(among), BLOCK):
            block = torch.from_numpy(among[start : start + BLOCK]).to(device)
            cosines, column = query @ block.T, mine.to(device) - start
            inside = torch.nonzero((column >= 0) & (column < len(block)))[:, 0]
            cosines[inside, column[inside]] = -2.0
            found = cosines.max(dim=1)
            better = found.values > best
            best, at = torch.where(better, found.values, best), torch.where(better, found.indices + start, at)
        results.append((best.cpu(), at.cpu()))
    return Nearest(*(torch.cat(part).numpy() for part in zip(*results, strict=True)))


def halves(rows: np.ndarray, rounds: int = 10) -> tuple[np.ndarray, float]:
    """Part unit rows (n, D) in two by spherical 2-means -> who is in the first (n,) bool, the cosine of the means."""
    seed = int((rows @ rows.sum(0)).argmin())
    centres = np.stack([rows[seed], rows[int((rows @ rows[seed]).argmin())]])
    side = np.zeros(len(rows), dtype=bool)
    for _ in range(rounds):
        cosines = rows @ centres.T
        new = cosines[:, 0] > cosines[:, 1]
        if (new == side).all() or new.all() or not new.any():
            break
        side = new
        centres = unit(np.stack([rows[side].sum(0), rows[~side].sum(0)]))
    if side.all() or not side.any():
        return side, 1.0
    first, second = unit(np.stack([rows[side].sum(0), rows[~side].sum(0)]))
    return side, float(first @ second)
