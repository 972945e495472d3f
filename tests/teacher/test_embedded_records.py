"""Records that carry embeddings, where data sets are merged: each image its own, under the new class ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from partialkd.config import DataConfig
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.images.decode import DECODING
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.orders import make_order
from partialkd.data.order.plan import BatchCut
from partialkd.data.order.readahead import make_plan
from partialkd.data.sources.open import open_source
from partialkd.data.sources.source import Source
from partialkd.errors import DataError
from partialkd.storage.manifest import read_manifest, write_manifest
from partialkd.teacher.embedded_records import RecordEmbeddings, check_decoding, check_writable, write_embedded
from partialkd.teacher.loader import TaughtLoader

DIM, SIZE = 5, 32
CPU = torch.device("cpu")
Rows = dict[bytes, list[float]]  # image -> the embedding that its record carries


def write_set(folder: Path, labels: list[int], seed: int, bad: tuple[int, ...] = ()) -> Rows:
    """Images of noise with embeddings of noise; those in `bad` cannot be decoded."""
    draw = np.random.default_rng(seed)
    images = [encode_jpeg(draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in labels]
    images = [b"no image %d" % place if place in bad else image for place, image in enumerate(images)]
    rows = draw.normal(size=(len(labels), DIM)).astype(np.float32).tolist()
    pairs = list(zip(images, labels, strict=True))
    pack_records(folder, pairs, max(labels) + 1, SIZE, embed=lambda index: rows[index])
    return dict(zip(images, rows, strict=True))


def config(*parts: dict[str, Any], **keys: Any) -> DataConfig:
    keys = {"image_size": SIZE, "workers": 1, "flip": False, "embeddings": DIM, **keys}
    return DataConfig.model_validate({"parts": parts, **keys})


@pytest.fixture
def merged(tmp_path: Path) -> tuple[DataConfig, Rows]:
    """a: one of three identities left out, one image unreadable. b: two files, whose map brings its ids before a's."""
    rows = write_set(tmp_path / "a", [0, 0, 0, 1, 1, 2, 2, 2], 1, bad=(6,))
    rows |= write_set(tmp_path / "b", [0, 0, 1, 1], 2)
    rows |= write_set(tmp_path / "more", [0, 1, 1, 1], 3)
    for name in ("rec", "idx"):
        (tmp_path / "b" / f"train.{name}").rename(tmp_path / "b" / f"train.00.{name}")
        (tmp_path / "more" / f"train.{name}").rename(tmp_path / "b" / f"train.01.{name}")
    (tmp_path / "out.txt").write_text("1\n")
    (tmp_path / "map.txt").write_text("0\t1\n1\t0\n")
    first = {"path": str(tmp_path / "a"), "exclude_identities": str(tmp_path / "out.txt"), "label_offset": 10}
    second = {"path": str(tmp_path / "b"), "label_map": str(tmp_path / "map.txt"), "weight": 1.5}
    return config(first, {**second, "label_offset": 0}, on_corrupt="skip"), rows


def carried(source: Source) -> torch.Tensor:
    count = len(source)
    return RecordEmbeddings(source, DIM).rows(torch.arange(count), torch.zeros(count, dtype=torch.bool))


def test_every_image_of_merged_parts_has_its_own_row(merged: tuple[DataConfig, Rows]) -> None:
    data, rows = merged
    source = open_source(data)
    assert carried(source).tolist() == [rows[source.read(index)[0]] for index in range(len(source))]
    assert source.labels().tolist() == [2, 2, 2, 3, 3, 3, 1, 1, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("loader", ["jpeg", "dali"])
def test_loaders_bring_it_under_the_new_ids(merged: tuple[DataConfig, Rows], loader: str) -> None:
    """What takes the place of the unreadable image brings its own row."""
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    data, rows = merged[0].model_copy(update={"loader": loader}), merged[1]
    source = open_source(data)
    plan = make_plan(data, source, make_order(data, source, 6, 3), BatchCut(6), 3)
    taught = TaughtLoader(open_loader(data, source, plan, CPU), RecordEmbeddings(source, DIM), CPU)
    seen: set[int] = set()
    for batch in taught.epoch(0):
        records = batch.records.tolist()
        assert batch.teacher is not None
        assert batch.teacher.tolist() == [rows[source.read(index)[0]] for index in records]
        assert batch.labels.tolist() == source.labels()[records].tolist()
        seen |= set(records)
    assert len(seen) > 10
    assert 4 not in seen  # a's image 6
    taught.close()


def test_the_fingerprint_follows_the_embeddings_of_each_part(tmp_path: Path) -> None:
    labels, prints = [0, 0, 1], []
    for name, factor in (("a", 1.0), ("b", 1.0), ("other", 2.0)):
        embed = lambda index, factor=factor: [factor * (index + 1)] * DIM
        pack_records(tmp_path / name, [(b"image", label) for label in labels], 2, SIZE, embed=embed)
    for second in ("b", "b", "other"):
        source = open_source(config({"path": str(tmp_path / "a")}, {"path": str(tmp_path / second)}))
        prints.append(RecordEmbeddings(source, DIM).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_what_a_part_must_carry_and_what_it_carries_is_looked_at(tmp_path: Path) -> None:
    write_set(tmp_path / "a", [0, 1], 1)
    pack_records(tmp_path / "plain", [(b"image", 0)], 1, SIZE)
    with pytest.raises(DataError, match=r"plain/train\.rec: key 1 .*must carry 6 labels, .*got 1 \(1 such records\)"):
        open_source(config({"path": str(tmp_path / "a")}, {"path": str(tmp_path / "plain")}))
    pack_records(tmp_path / "nan", [(b"image", 0)], 1, SIZE, embed=lambda index: [float("nan")] * DIM)
    source = open_source(config({"path": str(tmp_path / "a")}, {"path": str(tmp_path / "nan")}))
    with pytest.raises(DataError, match=r"nan/train\.rec: key 1 .*the embedding it carries is not finite"):
        carried(source)
    with pytest.raises(DataError, match=r"nan/train\.rec: key 1 .*carries no embedding of its mirrored image"):
        RecordEmbeddings(source, DIM).rows(torch.tensor([0, 2]), torch.tensor([False, True]))


def test_merged_records_are_written_as_one_set(merged: tuple[DataConfig, Rows], tmp_path: Path) -> None:
    """Where their class ids ascend; else nothing is begun."""
    source = open_source(merged[0])
    with pytest.raises(DataError, match=r"b/train\.00\.rec: key 1 .*: class ids must ascend .* got 1 after 3"):
        check_writable(source)
    ascending = config({"path": str(tmp_path / "a")}, {"path": str(tmp_path / "a")})
    source = open_source(ascending)
    check_writable(source)
    assert write_embedded(tmp_path / "new", source, RecordEmbeddings(source, DIM), SIZE) == 16
    again = open_source(ascending.model_copy(update={"parts": (), "path": str(tmp_path / "new")}))
    assert torch.equal(carried(again), carried(source))
    assert [again.read(index) for index in range(16)] == [source.read(index) for index in range(16)]
    check_decoding([tmp_path / "new", tmp_path / "a"])  # a is another program's, which says nothing
    said = read_manifest(tmp_path / "new", DataError)
    write_manifest(tmp_path / "new", {**said, "decoding": DECODING - 1})
    with pytest.raises(DataError, match=rf"new: embeddings are of images as decoding {DECODING - 1} made them, now it"):
        check_decoding([tmp_path / "a", tmp_path / "new"])
