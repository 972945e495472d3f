"""Suspicions about a data set: planted ones are found in made-up embeddings, and what an audit leaves is read again."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import teacher_cache_cases as cases
from helpers.ranks import RankFailure, run
from partialkd.commands.audit import audit, main
from partialkd.config import DataConfig
from partialkd.config.load import parse_config
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.sources.open import open_source
from partialkd.report import audit as audit_module
from partialkd.report.audit import KINDS, Audit, Finding, halves, nearest_rows, unit
from partialkd.report.audit_files import decisions, write_audit
from partialkd.report.audit_thresholds import chance, wrong_margin
from partialkd.world.world import World

CLASSES, EACH, DIM = 60, 10, 64


def _people(rng: np.random.Generator, count: int, each: int, centres: np.ndarray | None = None) -> np.ndarray:
    centres = unit(rng.normal(size=(count, DIM))) if centres is None else centres
    rows = np.repeat(centres, each, axis=0) + 0.6 / DIM**0.5 * rng.normal(size=(count * each, DIM))
    return unit(rows).astype(np.float32)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> tuple[Audit, np.ndarray, dict[str, object]]:
    """Classes 0 and 1 are one person, 2 is two people; images of wrong classes, lost ones, and a copy."""
    monkeypatch.setattr(audit_module, "BLOCK", 97)
    rng = np.random.default_rng(4)
    centres = unit(rng.normal(size=(CLASSES + 1, DIM)))
    centres[1] = centres[0]
    rows = _people(rng, CLASSES, EACH, centres[:CLASSES])
    labels = np.repeat(np.arange(CLASSES), EACH)
    rows[2 * EACH : 2 * EACH + 5] = _people(rng, 1, 5, centres[CLASSES:])
    rows[305], rows[417] = rows[98], rows[222]  # of classes 30 and 41, looking like 9 and 22
    rows[305] = unit(rows[305:306] + 0.01)[0]
    rows[550] = unit(rng.normal(size=(1, DIM)))[0]
    rows[123] = unit(rows[124:125] + 1e-4)[0]
    order = rng.permutation(len(rows))
    return Audit(rows[order], labels[order], CLASSES), order, {"centres": centres}


def _named(found: list[Finding], kind: str) -> list[Finding]:
    return [one for one in found if one.kind == kind]


def test_what_was_planted_is_found(planted: tuple[Audit, np.ndarray, dict[str, object]]) -> None:
    audit, order, _ = planted
    found = audit.findings()
    wrong = {(int(order[one.images[0]]), one.other) for one in _named(found, "wrong label")}
    assert wrong == {(305, 9), (417, 22)}
    assert [int(order[one.images[0]]) for one in _named(found, "outlier")] == [550]
    same = [(one.label, one.other) for one in _named(found, "one person")]
    assert same[0] == (0, 1)
    assert len(same) <= 4  # one by chance is expected
    assert [one.label for one in _named(found, "two people")] == [2]
    copies = {tuple(sorted(int(order[image]) for image in one.images)) for one in _named(found, "duplicate")}
    assert copies == {(123, 124)}


def test_whom_one_evaluates_is_found(planted: tuple[Audit, np.ndarray, dict[str, object]]) -> None:
    audit, _, made = planted
    rng, centres = np.random.default_rng(9), made["centres"]
    assert isinstance(centres, np.ndarray)
    strangers = unit(rng.normal(size=(200, DIM))).astype(np.float32)
    known = _people(rng, 5, 1, centres[[10, 20, 33, 44, 59]])
    found = audit.evaluated(np.concatenate([strangers[:100], known, strangers[100:]]))
    assert {one.label for one in found} >= {10, 20, 33, 44, 59}
    assert {one.other for one in found} >= set(range(100, 105))
    assert len(found) <= 8  # one or two by chance are expected


def test_clean_data_is_hardly_suspected() -> None:
    rng = np.random.default_rng(5)
    found = Audit(_people(rng, CLASSES, EACH), np.repeat(np.arange(CLASSES), EACH), CLASSES).findings()
    assert len(found) <= 2


def test_the_nearest_equal_a_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "BLOCK", 7)
    rng = np.random.default_rng(6)
    rows, among, own = unit(rng.normal(size=(30, 5))), unit(rng.normal(size=(23, 5))), rng.integers(-1, 23, 30)
    found = nearest_rows(rows.astype(np.float32), among.astype(np.float32), own, "cpu")
    for at, row in enumerate(rows):
        cosines = sorted(((float(row @ other), to) for to, other in enumerate(among) if to != own[at]), reverse=True)
        assert found.best[at] == pytest.approx(cosines[0][0], abs=1e-6)
        assert found.at[at] == cosines[0][1]


@pytest.mark.parametrize("twins", [0, 40])
def test_chance_is_exceeded_as_often_as_said(twins: int) -> None:
    """Of 400 rows with 300 strangers each, one in all: in twelve draws twelve, give or take three deviations.

    Also where a tenth of the rows have a twin, some of whom are hardly more alike than strangers come to be.
    """
    rng = np.random.default_rng(7)
    above, found = 0, 0
    for _ in range(12):
        best = (0.1 * rng.normal(size=(400, 300))).max(1)
        best[:twins] = np.maximum(best[:twins], rng.normal(0.6, 0.1, twins))
        alike = best > chance(best, 300)
        above, found = above + int(alike[twins:].sum()), found + int(alike[:twins].sum())
    assert 12 - 3 * 12**0.5 < above < 12 + 3 * 12**0.5
    assert found >= 0.9 * 12 * twins
    assert chance(np.zeros(5), 300) == 1.0


def test_the_margin_of_wrong_labels_is_told_without_knowing_them() -> None:
    """Of 5000 labels 100 are wrong; most are found among few others, and none are where all are right."""
    rng = np.random.default_rng(8)
    right, mislabelled = rng.normal(-0.5, 0.2, 4900), rng.normal(0.6, 0.15, 5000)
    margin = np.concatenate([right, rng.choice(mislabelled, 100)])
    least = wrong_margin(margin, mislabelled)
    assert least == pytest.approx(np.quantile(mislabelled, 0.15))
    assert wrong_margin(rng.permutation(mislabelled), mislabelled) == float("inf")  # a network that tells nobody apart
    assert wrong_margin(right, mislabelled) == float("inf")
    assert wrong_margin(np.empty(0), np.empty(0)) == float("inf")


def test_halves_of_one_image_repeated() -> None:
    side, cosine = halves(np.repeat(unit(np.ones((1, 4))), 6, axis=0))
    assert cosine == pytest.approx(1.0)
    assert side.shape == (6,)


def test_empty_classes_and_single_images_are_passed_over() -> None:
    rows = unit(np.random.default_rng(0).normal(size=(3, 4))).astype(np.float32)
    assert Audit(rows, np.array([0, 2, 5]), 7).findings() == []


def test_what_is_left_is_read_by_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images = [encode_jpeg(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)) for _ in range(12)]
    pack_records(tmp_path / "data", ((image, number // 2) for number, image in enumerate(images)), 6, 32)
    source = open_source(DataConfig(path=str(tmp_path / "data"), image_size=32))
    findings = [
        Finding("one person", 1, 3, (2, 6), 0.9, 0.5),
        Finding("two people", 4, -1, (8, 9), 0.1, 0.3),
        Finding("evaluated", 0, 7, (0,), 0.8, 0.4),
        Finding("wrong label", 5, 2, (10,), 0.7, 0.4),
        Finding("one person", 3, 5, (6, 10), 0.8, 0.5),
    ]
    assert decisions(findings) == ({0, 4}, {3: 1, 5: 1})
    write_audit(tmp_path / "audit", source, findings, lambda _: ("<b>who\x1b", images[11]))
    page = (tmp_path / "audit" / "index.html").read_text()
    assert page.count("<img ") == 9
    assert "<b>who" not in page
    assert "&lt;b&gt;who\\x1b" in page
    rows = list(csv.reader((tmp_path / "audit" / "findings.csv").open()))
    assert rows[1][:3] == ["one person", "1", "3"]
    lists = {name: f"{name}.txt" for name in ("exclude_images", "label_map")} | {"exclude_identities": "exclude.txt"}
    opened = {
        key: open_source(
            DataConfig(path=str(tmp_path / "data"), image_size=32, **{key: str(tmp_path / "audit" / name)})
        )
        for key, name in lists.items()
    }
    assert (opened["exclude_identities"].num_classes, len(opened["exclude_identities"])) == (4, 8)
    assert (opened["exclude_images"].num_classes, len(opened["exclude_images"])) == (6, 11)
    assert [opened["exclude_images"].read(at)[0] for at in (9, 10)] == [images[9], images[11]]
    assert (opened["label_map"].num_classes, len(opened["label_map"])) == (2, 8)
    assert opened["label_map"].labels().tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("cosine", ["nan", "1.5", "-2"])
def test_a_duplicate_is_told_by_a_cosine(cosine: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["configs/quickstart.toml", "--out", "none", f"--duplicate={cosine}"])
    assert f"--duplicate must be a cosine, in [-1, 1], got {cosine}" in capsys.readouterr().err


def two_teachers(folder: Path) -> dict[str, Any]:
    given = {"source": "checkpoint", "path": str(folder / "teacher.safetensors")}
    return {"source": "ensemble", "ensemble": [given, {**given, "weight": 2.0}]}


def audit_of(world: World, folder: Path, cache: str, sets: list[str], out: Path, several: bool = False) -> None:
    settings = cases.tree(folder)
    if several:
        settings["teacher"] = two_teachers(folder)
    settings["evaluate"] |= {"sets": sets}
    settings["teacher"] |= {"cache": cache}
    audit(parse_config(settings), world, out, 0.99)


@pytest.mark.distributed
def test_several_teachers_audit_too(teacher_caches: Path, tmp_path: Path) -> None:
    settings = {**cases.tree(teacher_caches), "teacher": two_teachers(teacher_caches)}
    run(cases.embed_into, 1, settings, tmp_path / "kept", "fp32")
    run(audit_of, 1, teacher_caches, str(tmp_path / "kept"), [], tmp_path / "audit", True)
    assert (tmp_path / "audit" / "findings.csv").exists()
    with pytest.raises(RankFailure, match="was made by another teacher"):
        run(audit_of, 1, teacher_caches, str(tmp_path / "kept"), [], tmp_path / "other")


@pytest.mark.slow
def test_an_audit_of_a_configurations_data(teacher_caches: Path, tmp_path: Path) -> None:
    """On drawn faces and two ranks; a teacher of random weights suspects as it likes, but all is written."""
    sets = [path.name for path in (teacher_caches / "data").glob("*.bin")]
    run(audit_of, 2, teacher_caches, str(teacher_caches / "fp32"), sets, tmp_path / "audit")
    rows = list(csv.DictReader((tmp_path / "audit" / "findings.csv").open()))
    assert all(row["kind"] in KINDS and float(row["cosine"]) <= 2.0 for row in rows)
    lines = (tmp_path / "audit" / "label_map.txt").read_text().splitlines()
    assert len(lines) == cases.IDENTITIES
    assert f"{cases.IDENTITIES} identities, {cases.RECORDS} images" in (tmp_path / "audit" / "index.html").read_text()
    with pytest.raises(RankFailure, match="already exists"):
        run(audit_of, 2, teacher_caches, str(teacher_caches / "fp32"), sets, tmp_path / "audit")
    with pytest.raises(RankFailure, match="holds no teacher cache"):
        run(audit_of, 2, teacher_caches, str(tmp_path), sets, tmp_path / "other")
    assert not (tmp_path / "other").exists()
