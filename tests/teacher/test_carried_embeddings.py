"""A cache written into records, and runs that learn from those."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.ranks import run
from helpers.teacher_cache_cases import DIM, RECORDS, embed_into, losses, settings_of, tree
from partialkd.config import DataConfig
from partialkd.config.load import parse_config
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.sources.open import open_source
from partialkd.errors import ConfigError, DataError
from partialkd.teacher.embedded_records import RecordEmbeddings

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


# ---------------------------------------------------------------------------------------------- in the records


@pytest.fixture(scope="module")
def embedded(teacher_caches: Path) -> Path:
    """The records again, with the embeddings in them."""
    run(embed_into, 1, tree(teacher_caches), teacher_caches / "fp32", "fp32", False, teacher_caches / "embedded")
    return teacher_caches / "embedded"


def embedded_data(folder: Path) -> DataConfig:
    return DataConfig(path=str(folder), image_size=32, loader="jpeg", flip=False, embeddings=DIM)


def test_embeddings_go_into_records_and_come_back(teacher_caches: Path, embedded: Path) -> None:
    before, after = open_source(parse_config(tree(teacher_caches)).data), open_source(embedded_data(embedded))
    assert len(after) == RECORDS
    assert np.array_equal(after.labels(), before.labels())
    kept = np.fromfile(teacher_caches / "fp32" / "embeddings.bin", "<f4").reshape(RECORDS, 2, DIM)
    plain = torch.zeros(RECORDS, dtype=torch.bool)
    assert np.array_equal(RecordEmbeddings(after, DIM).rows(torch.arange(RECORDS), plain).numpy(), kept[:, 0])
    index = {int(key): int(at) for key, at in (line.split() for line in (embedded / "train.idx").open())}
    content = (embedded / "train.rec").read_bytes()
    for i in (0, 7, RECORDS - 1):
        payload = content[index[i + 1] + 8 :]
        flag, unused, key, other = struct.unpack_from("<IfQQ", payload)
        assert (flag, unused, key, other) == (DIM + 1, 0.0, i + 1, 0)
        numbers = struct.unpack_from(f"<{DIM + 1}f", payload, 24)
        assert np.array_equal(np.float32(numbers[:DIM]), kept[i, 0])
        assert numbers[DIM] == before.labels()[i]
        assert payload[24 + 4 * (DIM + 1) :].startswith(before.read(i)[0])


def test_a_run_learns_from_its_records(teacher_caches: Path, embedded: Path) -> None:
    """The same losses as live, without mirroring; no teacher is there."""
    live = settings_of(teacher_caches, "live-plain", "margindistillation")
    live["data"]["flip"] = False
    carried = settings_of(teacher_caches, "carried", "margindistillation")
    carried["teacher"] = {"source": "records"}
    carried["data"] = embedded_data(embedded).model_dump(mode="json", exclude_none=True)
    assert run(losses, 2, carried)[0] == run(losses, 2, live)[0]
    carried["data"]["flip"] = True
    with pytest.raises(ConfigError, match=r'data\.flip: must be false with teacher\.source = "records"'):
        parse_config(carried)


def test_records_that_carry_something_else(teacher_caches: Path, embedded: Path) -> None:
    with pytest.raises(DataError, match=r"key 1 at byte 0: must carry 9 labels, .*\(data\.embeddings\), got 17"):
        open_source(embedded_data(embedded).model_copy(update={"embeddings": 8}))
    with pytest.raises(DataError, match=r"must carry 17 labels, .* got 1 \(96 such records\)"):
        open_source(embedded_data(teacher_caches / "data"))
    source = open_source(embedded_data(embedded))
    with pytest.raises(DataError, match="carries no embedding of its mirrored image"):
        RecordEmbeddings(source, DIM).rows(torch.tensor([3]), torch.tensor([True]))


def test_records_of_another_teacher_have_another_fingerprint(tmp_path: Path) -> None:
    """Sizes, order and class ids are the same."""
    sources = []
    for factor in (1.0, 2.0):
        folder = tmp_path / str(factor)
        embed_one = lambda index, factor=factor: [factor * (index + 1)] * DIM
        pack_records(folder, ((b"image", label) for label in (0, 0, 1)), 2, 32, None, embed_one)
        sources.append(open_source(embedded_data(folder)))
    first, second = (RecordEmbeddings(source, DIM).fingerprint for source in sources)
    assert first != second
    assert first == RecordEmbeddings(open_source(embedded_data(tmp_path / "1.0")), DIM).fingerprint
