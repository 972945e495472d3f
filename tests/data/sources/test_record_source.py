"""InsightFace folders of several .rec files, the kept index, and the memory that an index takes."""

from __future__ import annotations

import gc
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.bad_images import lying
from helpers.source_cases import contents, write_part
from partialkd.config import DataConfig
from partialkd.data.formats import recordio
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.formats.recordio import RecordReader, pack_payload
from partialkd.data.order.orders import make_order
from partialkd.data.order.plan import BatchCut
from partialkd.data.order.readahead import make_plan
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.data.sources.open import open_source
from partialkd.errors import DataError


def test_parts_are_one_source_in_the_order_of_their_numbers(parts: Path) -> None:
    source = RecordIOSource(parts)
    assert contents(source) == [(b"a", 3), (b"b", 0), (b"c", 3), (b"d", 3), (b"e", 2), (b"f", 1)]
    assert (len(source), source.num_classes, source.sizes) == (6, 10, (6,))
    assert source.labels().tolist() == [3, 0, 3, 3, 2, 1]
    assert [source.labels(start, start + 3).tolist() for start in (0, 1, 3)] == [[3, 0, 3], [0, 3, 3], [3, 2, 1]]
    assert source.name(3).startswith(f"{parts}/train.01.rec: key 4 at byte ")
    assert [source.stem(n) for n in (0, 2, 5)] == ["00_00000001", "01_00000001", "02_00000009"]
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)
    with pytest.raises(IndexError, match=r"\[0, 6\), got 6"):
        source.read(6)


def test_fingerprint_of_parts(parts: Path) -> None:
    before = RecordIOSource(parts).fingerprint
    write_part(parts, "02", {9: (2, b"f")})
    assert RecordIOSource(parts).fingerprint != before
    write_part(parts, "02", {9: (1, b"f")})
    assert RecordIOSource(parts).fingerprint == before
    (parts / "train.02.rec").rename(parts / "train.2.rec")
    (parts / "train.02.idx").rename(parts / "train.2.idx")
    assert RecordIOSource(parts).fingerprint == before


def test_readahead_asks_for_runs_of_each_file(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("os.posix_fadvise", lambda fd, at, length, advice: asked.append((at, length)))
    source = RecordIOSource(parts)
    source.readahead(1, 5)
    first, second = source.files[0].reader, source.files[1].reader
    assert asked == [(first.offsets[2], first.size - first.offsets[2]), (0, second.size)]
    asked.clear()
    source.readahead(2, 4)
    assert asked == [(0, second.offsets[2])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "train.01.rec").unlink(), r"part 1 has no \.rec \(parts go up to 2\)"),
        (lambda f: (f / "train.02.idx").unlink(), r"part 2 has no \.idx"),
        (lambda f: [(f / f"train.01.{kind}").unlink() for kind in ("rec", "idx")], r"part 1 has no \.rec"),
        (lambda f: (f / "train.1.rec").write_bytes(b""), r"there is a part of this number already: train\.0?1\.rec"),
        (
            lambda f: (f / "train.rec").write_bytes(b""),
            r"holds train\.rec and parts train\.\*\.rec; one of them must go",
        ),
    ],
)
def test_parts_that_are_not_all_there(parts: Path, change: Callable[[Path], object], message: str) -> None:
    change(parts)
    with pytest.raises(DataError, match=message):
        RecordIOSource(parts)


def test_a_wrong_label_names_its_part(parts: Path) -> None:
    write_part(parts, "02", {9: (10, b"f")})
    with pytest.raises(
        DataError, match=r"train\.02\.rec: key 9 at byte 0: label must be an integer in \[0, 10\), got 10"
    ):
        RecordIOSource(parts)


@pytest.mark.parametrize("left", [0, 8])
def test_a_file_cut_after_it_was_opened_is_named_by_its_scan(parts: Path, left: int) -> None:
    reader = RecordReader(parts / "train.01.rec", parts / "train.01.idx")
    size = reader.size
    os.truncate(parts / "train.01.rec", left)
    with pytest.raises(DataError, match=rf"train\.01\.rec: had {size} bytes when it was opened, now it has {left}"):
        reader.headers()


# -------------------------------------------------------------------------------------------------- memory


def write_many(folder: Path, records: int, order: np.ndarray) -> Path:
    """`records` records of four bytes of image, written at once; labels a twentieth of `order`'s places."""
    folder.mkdir()
    size = 8 + 24 + 4
    one = np.frombuffer(
        b"\x0a\x23\xd7\xce" + (28).to_bytes(4, "little") + pack_payload(0.0, 0, b"JPEG"), dtype=np.uint8
    )
    rows = np.tile(one, (records, 1))
    labels = (order // 20).astype("<f4")
    rows[:, 12:16] = labels.view(np.uint8).reshape(-1, 4)
    rows.tofile(folder / "train.rec")
    index = folder.parent / f"{records}.idx"
    if not index.exists():
        index.write_text("".join(f"{key}\t{key * size}\n" for key in range(records)))
    os.link(index, folder / "train.idx")
    (folder / "property").write_text(f"{records // 20},112,112\n")
    return folder


def measure(folder: Path, settings: dict[str, Any]) -> tuple[int, int, int]:
    """Records, bytes held at the end, bytes at the peak: of opening a source and asking a plan for records."""
    tracemalloc.start()  # numpy reports its arrays to it
    data = DataConfig(path=str(folder), **settings)
    source = open_source(data)
    plan = make_plan(data, source, make_order(data, source, 512, seed=1), BatchCut(512), 1)
    for step in (0, plan.micro_steps - 1):
        plan.indices(0, step)
        plan.indices(1, step)
    _, peak = tracemalloc.get_traced_memory()
    gc.collect()  # what is held, not what waits to be let go of
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return len(source), held, peak


@pytest.fixture(scope="module")
def small_and_large(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Sets of 300,000 and 900,000 records: sorted by class id, and mixed."""
    folder = tmp_path_factory.mktemp("many")
    shuffled = np.random.default_rng(0).permutation
    return [
        (write_many(folder / f"sorted{n}", n, np.arange(n)), write_many(folder / f"mixed{n}", n, shuffled(n)))
        for n in (300_000, 900_000)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "mixed", "held_bytes"),
    [
        ({}, False, 12),
        ({"shuffle": "blocks"}, False, 12.1),
        ({"sampler": "balanced"}, False, 12 + 16 / 20),  # an identity has 20 images
        ({"sampler": "pk"}, True, 16 + 16 / 20),
        ({"min_images": 2, "exclude_identities": "exclude"}, True, 16 * 7 / 6 + 4 / 20),  # of 7 records 6 are used
    ],
)
def test_bytes_a_record(
    small_and_large: list[tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    mixed: bool,
    held_bytes: float,
) -> None:
    """The difference between a large and a small set; a rank with 1e8 records must stay below 2 GB, so 20 bytes."""
    monkeypatch.setattr(recordio, "_SCAN_THREADS", 1)  # what threads hold is bounded, but not yet so in the small set
    results = []
    for pair, classes in zip(small_and_large, (15_000, 45_000), strict=True):
        if "exclude_identities" in settings:
            settings = settings | {"exclude_identities": str(tmp_path / "exclude")}
            (tmp_path / "exclude").write_text("\n".join(map(str, range(0, classes, 7))))
        results.append(measure(pair[mixed], settings))
    (n, held, peak), (m, more_held, more_peak) = results
    assert (more_held - held) / (m - n) < held_bytes + 0.2
    assert (more_peak - peak) / (m - n) < 20


def test_fingerprints_tell_pictures_that_are_turned_from_those_that_were_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches of sets with lying pictures were made when EXIF was not obeyed; of all others they are good as before."""
    for how in (1, 6):
        images = [lying(number, how) for number in range(4)]
        pack_records(tmp_path / f"set{how}", [(image, number // 2) for number, image in enumerate(images)], 2, 32)
    now = [RecordIOSource(tmp_path / f"set{how}").fingerprint for how in (1, 6)]
    monkeypatch.setattr("partialkd.data.sources.source.orientation", lambda _: 1)
    before = [RecordIOSource(tmp_path / f"set{how}").fingerprint for how in (1, 6)]
    assert now[0] == before[0]
    assert now[1] != before[1]
