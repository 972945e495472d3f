"""Data sets are merged without rewriting a file; class ids lead back to them; what cannot be meant is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.merged_cases import contents, merged, write_list
from helpers.source_cases import write_plain
from partialkd.config import DataConfig
from partialkd.config.load import parse_config
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.data.sources.merged import MergedSource
from partialkd.data.sources.open import open_source
from partialkd.data.sources.source import save_class_ids
from partialkd.errors import ConfigError


def test_parts_are_read_one_after_the_other_under_new_ids(sets: Path) -> None:
    source = merged(sets, {"path": "a"}, {"path": "b"}, {"path": "c"})
    assert contents(source) == [
        ("1", 0), ("2", 0), ("3", 2), ("4", 1), ("5", 1), ("6", 1), ("0", 4), ("1", 3), ("2", 4),
        ("anna/1.jpg", 5), ("anna/2.jpg", 5), ("bob lee/1.jpg", 6), ("cleo/1.jpg", 7), ("cleo/2.jpg", 7),
    ]  # fmt: skip
    assert (source.num_classes, source.sizes) == (8, (6, 3, 5))
    assert source.labels(4, 8).tolist() == [1, 1, 4, 3]
    assert source.name(7).startswith(str(sets / "b/train.rec: key 1"))
    assert source.name(13) == str(sets / "c/cleo/2.jpg")
    with pytest.raises(IndexError, match=r"\[0, 14\), got 14"):
        source.read(14)
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


def test_class_ids_lead_back_to_part_and_identity(sets: Path) -> None:
    save_class_ids(merged(sets, {"path": "a"}, {"path": "c"}, min_images=2), sets / "class_ids.txt")
    assert (sets / "class_ids.txt").read_text() == "0\t0\t0\n1\t0\t2\n2\t1\tanna\n3\t1\tcleo\n"


def test_common_ids_must_be_meant(sets: Path) -> None:
    parts = ({"path": "a"}, {"path": "b", "label_offset": 2})  # b: 2, 3
    with pytest.raises(ConfigError, match=r"data\.shared_identities: must be true .*/a and .*/b have 2, the first 2"):
        merged(sets, *parts)
    assert merged(sets, *parts, shared_identities=True).num_classes == 3
    apart = merged(sets, {"path": "a"}, {"path": "b", "label_offset": 4})  # 4 and 5 have no image in a
    assert apart.num_classes == 5
    assert apart.labels().tolist()[-3:] == [4, 3, 4]


def test_fingerprint_follows_parts_and_filters_but_not_weights(sets: Path) -> None:
    a, b = {"path": "a"}, {"path": "b"}
    choices: list[tuple[tuple[dict[str, Any], ...], dict[str, Any]]] = [
        ((a, b), {}),
        ((b, a), {}),
        ((a, a), {}),
        ((a,), {}),
        ((a, b), {"min_images": 2}),
        (({**a, "exclude_identities": write_list(sets, "3")}, b), {}),
        (({**a, "label_map": write_list(sets, "0\t2\n2\t1\n3\t0\n")}, b), {}),
        ((a, {**b, "label_offset": 2}), {"shared_identities": True}),
    ]
    prints = [merged(sets, *parts, **keys).fingerprint for parts, keys in choices]
    assert len(set(prints)) == len(prints)
    assert merged(sets, {**a, "weight": 2.0}, b).fingerprint == prints[0]
    assert RecordIOSource(sets / "a").fingerprint not in prints


def test_readahead_reaches_the_files(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = merged(sets, {"path": "a"}, {"path": "b"}, {"path": "c"}, min_images=2)
    asked: list[tuple[str, int, int]] = []
    monkeypatch.setattr(
        "partialkd.data.formats.recordio.RecordReader.readahead",
        lambda self, start, stop: asked.append((self.path.parent.name, start, stop)),
    )
    source.readahead(1, 7)  # the first image of class 0 of a is not among them; b has two of class 1
    assert asked == [("a", 2, 7), ("b", 0, 3)]


def test_labels_of_scattered_images_in_any_slice(sets: Path) -> None:
    source = merged(sets, {"path": "a", "exclude_identities": write_list(sets, "3")}, {"path": "b"})
    every = source.labels()
    for start in range(len(source) + 1):
        for stop in range(start, len(source) + 1):
            np.testing.assert_array_equal(source.labels(start, stop), every[start:stop])


def test_labels_of_few_images_among_many_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far the images that are used lie apart."""
    write_plain(tmp_path, [5 + place % 2 if place in (3, 4, 9, 90, 91, 199) else place % 2 for place in range(200)])
    (tmp_path / "out.txt").write_text("0\n1\n")
    source = open_source(DataConfig(path=str(tmp_path), exclude_identities=str(tmp_path / "out.txt")))
    assert isinstance(source, MergedSource)
    asked: list[int] = []
    read = source.parts[0].source.labels
    monkeypatch.setattr("partialkd.data.sources.merged._CHUNK", 8)
    monkeypatch.setattr(
        source.parts[0].source, "labels", lambda start, stop: (asked.append(stop - start), read(start, stop))[1]
    )
    assert source.labels().tolist() == [1, 0, 1, 0, 1, 1]
    assert asked == [7, 2, 1]
    assert source.labels(2, 5).tolist() == [1, 0, 1]
    assert source.labels(6, 6).tolist() == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data.path: required key is missing"),
        (
            {"parts": [{"path": "a"}], "source": "folder"},
            "data.source: must be left out beside data.parts",
        ),
        ({"parts": [{"path": "a"}], "label_map": "m"}, "data.label_map: must be left out beside data.parts, got 'm'"),
        ({"parts": [{"path": "a", "weight": 0.0}]}, "data.parts.0.weight: must be greater than 0, got 0.0"),
        ({"parts": [{"path": "a", "offset": 1}]}, "data.parts.0.offset: unknown key"),
        (
            {"path": "a", "sampler": "pk", "shuffle": "blocks"},
            'data.shuffle: must be "global" with data.sampler',
        ),
        (
            {"parts": [{"path": "a", "weight": 2.0}], "sampler": "balanced"},
            'data.sampler: must be "shuffle" where parts have weights [2.0], got "balanced"',
        ),
        (
            {"path": "", "source": "synthetic", "min_images": 2},
            'data.source: must name files where identities are left out, got "synthetic"',
        ),
    ],
)
def test_configurations_that_cannot_be_meant(data: dict[str, Any], message: str) -> None:
    student = {"model": {"name": "iresnet18"}, "method": {"name": "arcface"}, "epochs": 1, "global_batch": 8}
    with pytest.raises(ConfigError) as error:
        parse_config({"run": {"name": "x"}, "data": data, "student": student})
    assert message in str(error.value)
