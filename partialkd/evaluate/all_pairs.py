"""Everything against everything: each image with each other one, and probes with a million distractors.

Shapes: unit rows (n, D) float32, identities (n,) int64. Scores are cosines, computed in blocks on any device; no (n, n)
matrix is held. Of the impostors only the highest scores are kept, as many as the false accept rates ask for, so that
their thresholds are exact order statistics (of scores in float32) whatever n is.

Sources: InsightFace's Masked Face Recognition challenge (all pairs, TAR at FAR 1e-6, arXiv:2108.08191) and MegaFace
(arXiv:1512.00596: every other image of the probe's person is put among the distractors by itself).
Errors: `ConfigError` for a rate that more than `MOST_KEPT` impostors would have to be kept for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from partialkd.errors import ConfigError, DataError
from partialkd.evaluate.largest import Largest
from partialkd.evaluate.rates import allowed

BLOCK = 4096  # rows at a time
MOST_KEPT = 1 << 26  # impostor scores


@dataclass(frozen=True)
class AllPairs:
    """Scores of genuine pairs, and the highest ones of impostors with the identities they are of."""

    genuine: np.ndarray  # (g,) float32
    genuine_of: np.ndarray  # (g,) identity
    impostors: int  # how many pairs there are of two identities
    highest: np.ndarray  # (k,) falling
    first: np.ndarray  # (k,) identity
    second: np.ndarray  # (k,) identity

    def threshold(self, far: float) -> float:
        """The strict threshold: at most far of the impostors score above it."""
        passing = allowed(far, self.impostors)
        return float(self.highest[passing]) if passing < self.impostors else float("-inf")

    def tar(self, far: float) -> float:
        """Share of genuine pairs above the strict threshold."""
        return float((self.genuine > self.threshold(far)).mean())


def all_pairs(
    rows: np.ndarray, identities: np.ndarray, fars: Sequence[float], device: torch.device | str = "cpu"
) -> AllPairs:
    """Score every pair of two images once."""
    order = np.argsort(identities, kind="stable")  # so that pairs of one identity lie near the diagonal
    own = identities[order]
    genuine_pairs, impostors = pairs_of(own)
    if genuine_pairs == 0 or impostors == 0:
        raise DataError(f"must hold pairs of both kinds, got {genuine_pairs} of one person, {impostors} of two")
    highest = Largest(_kept(fars, impostors), companions=2)
    genuine, genuine_of = [], []
    for scores, first, second in _upper_blocks(rows, order, own, device):
        same = first[:, None] == second[None] if first[-1] >= second[0] else None
        if same is not None:
            at = torch.nonzero(same & (scores > -2))  # -2: not a pair
            genuine.append(scores[at[:, 0], at[:, 1]].cpu().numpy())
            genuine_of.append(first[at[:, 0]].cpu().numpy())
            scores[same] = -2
        at = torch.nonzero(scores >= max(highest.least, -1.5))
        found = (scores[at[:, 0], at[:, 1]], first[at[:, 0]], second[at[:, 1]])
        highest.add(*(part.cpu().numpy() for part in found))
    return AllPairs(
        np.concatenate(genuine), np.concatenate(genuine_of), impostors, *highest.with_companions()
    )  # fmt: skip


def pairs_of(identities: np.ndarray) -> tuple[int, int]:
    """How many pairs of images (n,) there are of one identity, and of two."""
    sizes = np.unique(identities, return_counts=True)[1].astype(np.int64)
    genuine = int((sizes * (sizes - 1) // 2).sum())
    return genuine, len(identities) * (len(identities) - 1) // 2 - genuine


def _upper_blocks(
    rows: np.ndarray, order: np.ndarray, own: np.ndarray, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Scores (a, b) of two blocks of images, and the identities of both; -2 where a pair is none, or was seen."""
    starts = range(0, len(own), BLOCK)
    on_device = lambda start: torch.from_numpy(rows[order[start : start + BLOCK]]).to(device)
    names = torch.from_numpy(own).to(device)
    for at, start in enumerate(starts):
        left = on_device(start)
        for other in starts[at:]:
            scores = left @ (left if other == start else on_device(other)).T
            if other == start:
                scores[torch.ones_like(scores, dtype=torch.bool).tril()] = -2
            yield scores, names[start : start + BLOCK], names[other : other + BLOCK]


def check_rates(fars: Sequence[float], impostors: int, where: str = "") -> None:
    """ConfigError for a rate that too many impostors would have to be kept for."""
    most = min(1.0, max(fars))
    if allowed(most, impostors) + 1 > MOST_KEPT < impostors:
        rule = f"a FAR of {most:g} among {impostors} impostor pairs is too loose"
        raise ConfigError(f"{where}{rule}: at most {MOST_KEPT / impostors:.1g} here")


def _kept(fars: Sequence[float], impostors: int) -> int:
    check_rates(fars, impostors)
    return min(allowed(min(1.0, max(fars)), impostors) + 1, impostors)


@dataclass(frozen=True)
class Distracted:
    """What probes found among distractors; g ordered pairs (probe, another image of the same person)."""

    mates: np.ndarray  # (g,) scores
    probe: np.ndarray  # (g,) index of the probe
    before: np.ndarray  # (g,) distractors that score at least as much; `most` stands for it and more
    impostors: int  # probes times distractors
    highest: np.ndarray  # (k,) falling, of the impostors

    def rank_share(self, rank: int) -> float:
        """Share of pairs in which fewer than `rank` distractors stand before the mate."""
        return float((self.before < rank).mean())

    def threshold(self, far: float) -> float:
        """The strict threshold: at most far of the impostors score above it."""
        passing = allowed(far, self.impostors)
        return float(self.highest[passing]) if passing < self.impostors else float("-inf")

    def tar(self, far: float) -> float:
        """Share of pairs that score above the strict threshold."""
        return float((self.mates > self.threshold(far)).mean())


def among_distractors(
    probes: np.ndarray,
    subjects: np.ndarray,
    distractors: Iterable[np.ndarray],
    count: int,
    most: int = 100,
    fars: Sequence[float] = (1e-6,),
    device: torch.device | str = "cpu",
) -> Distracted:
    """Put each mate of each probe among the distractors, which come as blocks (b, D) of `count` rows in all.

    most: the highest rank that will be asked for.
    """
    queries = torch.from_numpy(probes).to(device)
    impostors = len(probes) * count
    highest = Largest(_kept(fars, impostors))
    nearest = torch.full((len(probes), most), -torch.inf, device=device)
    for block in distractors:
        for start in range(0, len(block), BLOCK):
            scores = queries @ torch.from_numpy(np.ascontiguousarray(block[start : start + BLOCK])).to(device).T
            highest.add(scores[scores >= highest.least].cpu().numpy())
            nearest = torch.cat([nearest, scores], 1).topk(most).values
    probe, mates = _mates(probes, subjects)
    before = (nearest.cpu().numpy()[probe] >= mates[:, None]).sum(1)
    return Distracted(mates, probe, before, impostors, highest.values())


def _mates(probes: np.ndarray, subjects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every ordered pair of two images of one person -> the probe's index, the score."""
    found = []
    for subject in np.unique(subjects):
        members = np.flatnonzero(subjects == subject)
        scores = probes[members] @ probes[members].T
        pairs = ~np.eye(len(members), dtype=bool)
        found.append((np.repeat(members, len(members) - 1), scores[pairs]))
    probe, mates = (np.concatenate(part) for part in zip(*found, strict=True))
    if not len(mates):
        raise DataError("no person has two images: there is nothing to find")
    return probe, mates
