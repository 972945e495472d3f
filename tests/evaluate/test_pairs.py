"""Pair scores against counting every pair at every threshold."""

from __future__ import annotations

import numpy as np
import pytest

from partialkd.errors import DataError
from partialkd.evaluate.pairs import score_pairs


def _pairs(count: int, seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    same = rng.random(count) < 0.5
    cosines = np.clip(rng.normal(0.0, 0.25, count) + 0.4 * same, -1, 1)
    return (np.round(cosines, 1) if ties else cosines), same


def _protocol(cosines: np.ndarray, same: np.ndarray, folds: int) -> tuple[list[float], list[float]]:
    """The protocol in words: for each fold, try every threshold on all other pairs, one pair at a time."""
    base, extra = divmod(len(same), folds)
    accuracies, thresholds, start = [], [], 0
    for fold in range(folds):
        stop = start + base + (fold < extra)
        others = [pair for pair in range(len(same)) if not start <= pair < stop]
        best, best_right = 0.0, -1
        for step in range(400):
            right = sum(((2 - 2 * cosines[pair]) < step * 0.01) == same[pair] for pair in others)
            if right > best_right:
                best, best_right = step * 0.01, right
        accuracies.append(np.mean([((2 - 2 * cosines[p]) < best) == same[p] for p in range(start, stop)]))
        thresholds.append(1 - best / 2)
        start = stop
    return accuracies, thresholds


@pytest.mark.parametrize(("count", "folds", "ties"), [(57, 10, False), (40, 4, False), (30, 3, True), (2, 2, False)])
def test_accuracy_is_the_protocols(count: int, folds: int, ties: bool) -> None:
    cosines, same = _pairs(count, 1, ties)
    if ties:
        cosines = cosines + 0.001  # off the grid: rounding must not decide
    if count == 2:
        same = np.array([True, False])
    accuracies, thresholds = _protocol(cosines, same, folds)
    got = score_pairs(cosines, same, folds, ())
    assert got.accuracy == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert got.accuracy_std == pytest.approx(np.std(accuracies), abs=1e-12)
    assert got.threshold == pytest.approx(np.mean(thresholds), abs=1e-12)
    assert got.pairs == count


def test_threshold_comes_from_the_other_folds() -> None:
    """The first fold's pairs are all judged wrongly by what is best for the rest."""
    cosines = np.array([0.1, 0.9] + [0.9, 0.1] * 9)
    same = np.array([True, False] + [True, False] * 9)
    got = score_pairs(cosines, same, 10, ())
    assert got.accuracy == pytest.approx(0.9)
    assert got.accuracy_std == pytest.approx(0.3)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_counts_every_couple(ties: bool) -> None:
    cosines, same = _pairs(83, 2, ties)
    couples = [(g > i) + 0.5 * (g == i) for g in cosines[same] for i in cosines[~same]]
    assert score_pairs(cosines, same, 10, ()).auc == pytest.approx(np.mean(couples), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_tar_is_the_best_any_threshold_allows(ties: bool, seed: int) -> None:
    cosines, same = _pairs(90, seed, ties)
    fars = (1.0, 0.5, 0.29, 0.1, 0.05, 1e-2, 1e-5)
    got = score_pairs(cosines, same, 10, fars).tar_at_far
    assert list(got) == ["1", "0.5", "0.29", "0.1", "0.05", "0.01", "1e-05"]
    different = (~same).sum()
    for far in fars:
        tars = [
            np.mean(cosines[same] >= threshold)
            for threshold in [*np.unique(cosines), np.inf]
            if (cosines[~same] >= threshold).sum() <= np.floor(np.round(far * different, 9))
        ]
        assert got[f"{far:g}"] == pytest.approx(max(tars), abs=1e-12)


def test_perfect_and_useless_scores() -> None:
    same = np.array([True, False] * 50)
    perfect = score_pairs(np.where(same, 0.803, 0.1), same, 10, (1e-3,))
    assert (perfect.accuracy, perfect.accuracy_std, perfect.auc) == (1.0, 0.0, 1.0)
    assert perfect.tar_at_far == {"0.001": 1.0}
    assert 0.1 < perfect.threshold < 0.803
    useless = score_pairs(np.full(100, 0.5), same, 10, (1e-3, 1.0))
    assert (useless.accuracy, useless.auc) == (0.5, 0.5)
    assert useless.tar_at_far == {"0.001": 0.0, "1": 1.0}


@pytest.mark.parametrize(
    ("cosines", "same", "folds", "reason"),
    [
        ([0.1, float("nan")], [True, False], 2, "cosines must be finite, got nan for pair 1"),
        ([0.1, 0.2], [True, True], 2, "must hold pairs of both kinds, got 2 of one person among 2"),
        ([0.1, 0.2], [False, False], 2, "must hold pairs of both kinds, got 0 of one person among 2"),
        ([0.1, 0.2], [True, False], 10, r"at least as many pairs as folds \(10\), got 2"),
        ([0.1, 0.2, 0.3], [True, False], 2, r"alike, got \(3,\) and \(2,\)"),
    ],
)
def test_unusable_pairs_are_errors(cosines: list[float], same: list[bool], folds: int, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        score_pairs(np.array(cosines), np.array(same), folds, (0.1,))
