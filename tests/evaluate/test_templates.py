"""Templates, searches, all pairs and distractors against plain loops in float64."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from partialkd.errors import ConfigError, DataError
from partialkd.evaluate import all_pairs as all_pairs_module
from partialkd.evaluate import identification
from partialkd.evaluate import templates as templates_module
from partialkd.evaluate.all_pairs import all_pairs, among_distractors
from partialkd.evaluate.identification import (
    published_count,
    rank_shares,
    search,
    tpir_published,
    tpir_strict,
)  # fmt: skip
from partialkd.evaluate.largest import Largest
from partialkd.evaluate.templates import SETTINGS, Setting, pair_scores, pooled, pooled_images, weighted_images

RNG = np.random.default_rng(5)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_templates_are_sums_of_means_of_media(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    n, width = 200, 8
    plain, mirrored = RNG.normal(size=(2, n, width)).astype(np.float32)
    scores = RNG.uniform(0.1, 1, n).astype(np.float32)
    templates, media = RNG.integers(100, 130, n), RNG.integers(0, 5, n)
    monkeypatch.setattr(templates_module, "BLOCK", 23)
    numbers, rows = pooled_images(plain, mirrored, scores, setting, templates, media)
    whole = pooled(weighted_images(plain, mirrored, scores, setting), templates, media)
    assert np.array_equal(numbers, whole[0])
    assert np.array_equal(rows, whole[1])
    assert numbers.tolist() == sorted(set(templates.tolist()))
    for number, row in zip(numbers, rows, strict=True):
        total = np.zeros(width)
        for medium in set(media[templates == number]):
            frames = []
            for image in np.flatnonzero((templates == number) & (media == medium)):
                feature = plain[image].astype(float)
                if setting.flip:
                    feature = feature + mirrored[image]
                if not setting.norm:
                    feature = feature / np.sqrt(feature @ feature)
                frames.append(feature * float(scores[image]) if setting.detector else feature)
            total += sum(frames) / len(frames)
        assert np.allclose(row, total / np.sqrt(total @ total), atol=1e-9, rtol=0)
    first, second = RNG.integers(0, len(rows), (2, 1000))
    expected = [sum(rows[a] * rows[b]) for a, b in zip(first, second, strict=True)]
    assert np.allclose(pair_scores(rows, first, second, block=300), expected, atol=1e-12, rtol=0)


def test_a_template_without_direction_is_named() -> None:
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(DataError, match="template 7: its images add up to no direction"):
        pooled(rows, np.array([7, 7, 8]), np.array([1, 2, 1]))


def test_searches_equal_sorted_lists() -> None:
    gallery, enrolled = _unit(RNG.normal(size=(60, 6))), np.arange(60) // 2  # two entries a subject
    subjects = RNG.integers(0, 45, 90)  # from 30 on: in no gallery
    probes = _unit(RNG.normal(size=(90, 6)) + 2 * gallery[np.minimum(2 * subjects, 59)])
    keep = published_count(len(probes), 0.1)
    found = search(probes, gallery, subjects, enrolled, keep)
    places, mates, strangers, others = [], [], [], []
    for probe, subject in zip(probes, subjects, strict=True):
        scores = [(float(probe @ entry), owner == subject) for entry, owner in zip(gallery, enrolled, strict=True)]
        ordered = sorted(scores, reverse=True)
        others += [score for score, own in scores if not own]
        if subject < 30:
            places.append(next(at for at, (_, own) in enumerate(ordered) if own))
            mates.append(max(score for score, own in scores if own))
        else:
            strangers.append(ordered[0][0])
    assert rank_shares(found, (1, 5, 10)) == {k: pytest.approx(np.mean([at < k for at in places])) for k in (1, 5, 10)}
    for fpir in (0.01, 0.1):
        allowed = int(fpir * len(strangers))
        threshold = sorted(strangers, reverse=True)[allowed]
        assert tpir_strict(found, fpir) == pytest.approx((np.mean(np.array(mates) > threshold), threshold), abs=1e-12)
        threshold = sorted(others, reverse=True)[int(np.ceil(len(probes) * fpir)) - 1]
        assert tpir_published(found, fpir) == pytest.approx(
            (np.mean(np.array(mates) > threshold), threshold), abs=1e-12
        )


def test_a_search_of_a_wide_gallery_takes_few_probes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is that of some scores, however many distractors there are; the numbers are the same."""
    rng = np.random.default_rng(6)
    gallery, subjects = _unit(rng.normal(size=(5000, 4))).astype(np.float32), rng.integers(0, 50, 300)
    probes, enrolled = _unit(rng.normal(size=(300, 4))).astype(np.float32), np.arange(5000) % 60
    wanted = search(probes, gallery, subjects, enrolled)
    monkeypatch.setattr(identification, "SCORES", 1 << 15)
    tracemalloc.start()
    found = search(probes, gallery, subjects, enrolled)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 4 * (1 << 15)
    for name in ("mate", "before", "other"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-6)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_pairs_module, "BLOCK", 16)


@pytest.mark.usefixtures("small_blocks")
def test_all_pairs_equal_a_full_matrix() -> None:
    identities = RNG.permutation(np.repeat(np.arange(20), RNG.integers(1, 8, 20)))
    rows = _unit(RNG.normal(size=(len(identities), 8))).astype(np.float32)
    fars = (1e-3, 1e-2, 0.3)
    found = all_pairs(rows, identities, fars)
    genuine, impostor = [], []
    for a in range(len(rows)):
        for b in range(a):
            (genuine if identities[a] == identities[b] else impostor).append(float(rows[a] @ rows[b]))
    assert found.impostors == len(impostor)
    assert np.allclose(np.sort(found.genuine), np.sort(genuine), atol=1e-6)
    assert np.allclose(found.highest, np.sort(impostor)[::-1][: len(found.highest)], atol=1e-6)
    assert (found.first != found.second).all()
    for far in fars:
        threshold = np.sort(impostor)[::-1][int(far * len(impostor))]
        assert found.tar(far) == pytest.approx(np.mean(np.array(genuine) > threshold), abs=1e-12)


@pytest.mark.usefixtures("small_blocks")
def test_mates_among_distractors_equal_loops() -> None:
    subjects = np.repeat(np.arange(6), 4)
    probes = _unit(RNG.normal(size=(24, 8)) + 1.5 * RNG.normal(size=(6, 8))[subjects]).astype(np.float32)
    distractors = _unit(RNG.normal(size=(100, 8))).astype(np.float32)
    found = among_distractors(probes, subjects, np.array_split(distractors, 3), 100, most=10, fars=(1e-2,))
    scores = probes @ distractors.T
    before, mates = [], []
    for probe in range(24):
        for mate in range(24):
            if mate != probe and subjects[mate] == subjects[probe]:
                mates.append(float(probes[probe] @ probes[mate]))
                before.append(sum(scores[probe] >= mates[-1]))
    for rank in (1, 5, 10):
        assert found.rank_share(rank) == pytest.approx(np.mean(np.array(before) < rank))
    threshold = np.sort(scores.ravel())[::-1][24]
    assert found.tar(1e-2) == pytest.approx(np.mean(np.array(mates) > threshold))


def test_rates_that_would_fill_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_pairs_module, "MOST_KEPT", 10)
    rows = _unit(RNG.normal(size=(30, 4))).astype(np.float32)
    with pytest.raises(ConfigError, match=r"a FAR of 0.1 among 420 impostor pairs is too loose: at most 0.02 here"):
        all_pairs(rows, np.arange(30) // 2, (0.1,))


def test_no_pair_of_one_person() -> None:
    rows = _unit(RNG.normal(size=(5, 4))).astype(np.float32)
    with pytest.raises(DataError, match="must hold pairs of both kinds, got 0 of one person, 10 of two"):
        all_pairs(rows, np.arange(5), (0.1,))


def test_the_largest_of_a_stream() -> None:
    numbers = RNG.normal(size=5000)
    largest = Largest(37, companions=1)
    for part in np.array_split(np.arange(5000), 23):
        largest.add(numbers[part], part)
    values, at = largest.with_companions()
    assert values.tolist() == sorted(numbers.tolist(), reverse=True)[:37]
    assert numbers[at].tolist() == values.tolist()
    assert Largest(3).values().shape == (0,)
