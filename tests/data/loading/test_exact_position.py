"""Going on from the middle of an epoch: with either loader and every order, at the same and at other world sizes, no
record is read twice and none is missed. Counted over what the loaders deliver from real files.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from partialkd.config import DataConfig
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.loading.loader import open_loader
from partialkd.data.loading.ordered import Loader
from partialkd.data.order.orders import make_order
from partialkd.data.order.plan import BatchCut, TrainingPlan
from partialkd.data.order.readahead import make_plan
from partialkd.data.sources.open import open_source
from partialkd.data.sources.source import Source
from partialkd.errors import CheckpointError

SIZE, BATCH, SEED, STOPPED_AFTER = 16, 12, 6, 3  # optimiser steps

KINDS: dict[str, dict[str, Any]] = {
    "shuffle": {},
    "blocks": {"shuffle": "blocks", "block_records": 5, "group_blocks": 3},
    "balanced": {"sampler": "balanced"},
    "pk": {"sampler": "pk", "images_per_identity": 3},
    "half_pk": {"sampler": "half_pk", "images_per_identity": 3},
    "weighted": {"parts": True},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two .rec files: 70 images of 12 identities, 23 of 5; every picture has its own grey level."""
    root = tmp_path_factory.mktemp("position")
    for name, images, classes, first in (("a", 70, 12, 0), ("b", 23, 5, 70)):
        labels = np.sort(np.random.default_rng(first).integers(0, classes, images))
        pictures = (encode_jpeg(np.full((SIZE, SIZE, 3), 2 * (first + n) + 20, np.uint8), 95) for n in range(images))
        pack_records(root / name, zip(pictures, labels.tolist(), strict=True), classes, SIZE)
    return [str(root / "a"), str(root / "b")]


def config(kind: str, folders: list[str], loader: str) -> DataConfig:
    keys: dict[str, Any] = {"image_size": SIZE, "loader": loader, "workers": 1, **KINDS[kind]}
    if keys.pop("parts", False):
        weighted = {"path": folders[0], "weight": 0.5}, {"path": folders[1], "weight": 2.0}
        return DataConfig.model_validate({**keys, "parts": weighted})
    return DataConfig(path=folders[0], **keys)


def rank_of(
    data: DataConfig, source: Source, rank: int, world_size: int, accumulation: int
) -> tuple[TrainingPlan, Loader]:
    order = make_order(data, source, BATCH, SEED)
    plan = make_plan(data, source, order, BatchCut(BATCH, accumulation, rank, world_size), SEED)
    return plan, open_loader(data, source, plan, torch.device("cpu"))


def read(data: DataConfig, epoch: int, steps: range, world_size: int, accumulation: int = 1) -> list[list[tuple]]:
    """What all ranks of a fresh start get in these optimiser steps: (record, flipped, class id, grey level) each."""
    source = open_source(data)
    found: list[list[tuple]] = [[] for _ in steps]
    for rank in range(world_size):
        _, loader = rank_of(data, source, rank, world_size, accumulation)
        batches = loader.epoch(epoch, steps.start * accumulation)
        for number in range(len(steps) * accumulation):
            batch = next(batches)
            levels = (batch.images.mean(dim=(1, 2, 3)) * 127.5 + 127.5).round().int().tolist()
            rows = zip(batch.records.tolist(), batch.flipped.tolist(), batch.labels.tolist(), levels, strict=True)
            found[number // accumulation] += list(rows)
        loader.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["jpeg", "dali"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_an_epoch_stopped_at_four_ranks_and_gone_on_with(kind: str, loader: str, folders: list[str]) -> None:
    """Epoch 1 in one go at one rank; and stopped at four ranks after three steps, gone on with at 4, 3, 1 ranks."""
    data = config(kind, folders, loader)
    source = open_source(data)
    steps = rank_of(data, source, 0, 1, 1)[0].steps
    assert steps >= 5
    whole = [Counter(step) for step in read(data, 1, range(steps), 1)]
    before = read(data, 1, range(STOPPED_AFTER), 4)
    for world_size, accumulation in ((4, 1), (3, 1), (1, 1), (3, 2)):
        after = read(data, 1, range(STOPPED_AFTER, steps), world_size, accumulation)
        assert [Counter(step) for step in before + after] == whole  # each step's batch, pixels and flips included
    labels, everything = source.labels(), list(chain.from_iterable(before + after))
    for record, _, label, level in everything:
        assert label == labels[record]
        assert abs(level - (2 * record + 20)) <= 2  # the picture that stands there
    times = Counter(record for record, *_ in everything)
    if kind in ("shuffle", "blocks"):
        assert set(times.values()) == {1}
        assert len(times) == len(source) // BATCH * BATCH
    elif kind == "weighted":
        assert max(times[record] for record in range(70)) == 1
        assert max(times[record] for record in range(70, 93)) == 2
        assert sum(times.values()) == (35 + 46) // BATCH * BATCH
    elif kind == "balanced":
        turns = Counter(labels[record] for record, *_ in everything)
        assert max(turns.values()) - min(turns.values()) <= 1
    elif kind == "half_pk":  # three records of each of two identities among them
        counts = [Counter(row[2] for row in step) for step in before + after]
        assert all(sum(n >= 3 for n in count.values()) >= 2 for count in counts)
    else:
        assert all(len({row[2] for row in step}) == 4 for step in before + after)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_position_is_the_same_place_with_other_micro_steps(kind: str, folders: list[str]) -> None:
    """An optimiser step's records, whatever the accumulation: position x accumulation is the micro-step."""
    data = config(kind, folders, "jpeg")
    source = open_source(data)
    plain = rank_of(data, source, 0, 1, 1)[0]
    for accumulation in (2, 3, 4, 12):
        plan = rank_of(data, source, 0, 1, accumulation)[0]
        assert (plan.steps, plan.micro_steps) == (plain.steps, plain.steps * accumulation)
        for step in (0, plain.steps - 1, 2):
            parts = [plan.indices(3, step * accumulation + micro) for micro in range(accumulation)]
            np.testing.assert_array_equal(np.concatenate(parts), plain.indices(3, step))


def test_a_resumed_run_with_an_index_cache_is_the_same(folders: list[str], tmp_path: Path) -> None:
    data = config("weighted", folders, "jpeg")
    cached = data.model_copy(update={"index_cache": str(tmp_path)})
    expected = read(data, 0, range(2, 4), 3)
    assert read(cached, 0, range(2, 4), 3) == expected
    assert read(cached, 0, range(2, 4), 3) == expected


@pytest.mark.parametrize("loader", ["jpeg", "dali"])
def test_a_loader_knows_its_own_position(loader: str, folders: list[str]) -> None:
    """Read on over the end of an epoch; then another start, at another cut, goes on from the state alone."""
    data = config("shuffle", folders, loader)
    source = open_source(data)
    plan, first = rank_of(data, source, 0, 1, 2)
    batches = iter(first)
    seen = [next(batches).records.tolist() for _ in range(plan.micro_steps)]
    assert first.state() == {"epoch": 0, "samples": plan.steps * BATCH}
    seen += [next(batches).records.tolist() for _ in range(4)]
    assert first.position == (1, 4)
    state = first.state()
    assert state == {"epoch": 1, "samples": 2 * BATCH}
    assert list(chain.from_iterable(seen[-4:])) == [
        *plan.indices(1, 0),
        *plan.indices(1, 1),
        *plan.indices(1, 2),
        *plan.indices(1, 3),
    ]
    _, second = rank_of(data, source, 0, 1, 1)
    second.load_state(state)
    expected = [next(batches).records.tolist() for _ in range(2)]
    assert next(iter(second)).records.tolist() == expected[0] + expected[1]
    assert second.state() == first.state()
    first.close()
    second.close()


def test_a_position_at_the_end_of_an_epoch_is_the_start_of_the_next(folders: list[str]) -> None:
    data = config("shuffle", folders, "jpeg")
    plan, loader = rank_of(data, open_source(data), 0, 1, 1)
    loader.load_state({"epoch": 4, "samples": plan.steps * BATCH})
    assert next(iter(loader)).records.tolist() == plan.indices(5, 0).tolist()
    assert loader.state() == {"epoch": 5, "samples": BATCH}
    loader.close()


@pytest.mark.parametrize(
    "state", [{"epoch": 0, "samples": 5}, {"epoch": 0, "samples": 600}, {"epoch": -1, "samples": 0}]
)
def test_a_position_between_micro_steps_is_refused(state: dict[str, int], folders: list[str]) -> None:
    data = config("shuffle", folders, "jpeg")
    _, loader = rank_of(data, open_source(data), 0, 1, 1)
    with pytest.raises(CheckpointError, match="samples must be a multiple of 12 up to 60, got"):
        loader.load_state(state)
    assert loader.position == (0, 0)
