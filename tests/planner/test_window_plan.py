"""Centres in host memory: what the configuration refuses, what the plan counts and when it is advised."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from helpers import dense
from helpers.places import ROOT
from helpers.window_cases import BATCH, CLASSES, DIM, RATE, go_on, made
from partialkd.centres.host_memory import RowsInWindows
from partialkd.centres.sampling import Sampling
from partialkd.config.load import load_config, parse_config
from partialkd.errors import ConfigError
from partialkd.planner.advice import savings
from partialkd.planner.plan import Ranks, plan_phase
from partialkd.world.shard import shard_of
from partialkd.world.world import World

CONFIGS = ROOT / "configs"


def config_of(accumulation: int = 1, **centres: Any) -> Any:
    tree = {
        "run": {"name": "t"}, "data": {"path": "x"}, "teacher": {"source": "onnx", "path": "t", "embedding_dim": 8},
        "student": {
            "model": {"name": "iresnet18", "embedding_dim": 8, "width": 0.25, "depth": 0.25},
            "method": {"name": "arcface"}, "epochs": 1,
            "global_batch": BATCH, "accumulation": accumulation, "centres": centres,
        },
    }  # fmt: skip
    return parse_config(tree).student


@pytest.mark.parametrize(("rate", "share"), [(0.487, "1/2"), (0.49, "1/2"), (0.5, "1/2"), (0.51, "1/2"), (1.0, "1")])
def test_host_memory_is_for_samples_of_less_than_half(rate: float, share: str) -> None:
    """Of what a step really takes: two windows of half are as many rows as there are."""
    rule = (
        rf'student.centres.memory: must be "device" with sample_rate = {rate:g}, which takes {share} of .*, got "host"'
    )
    with pytest.raises(ConfigError, match=rule):
        config_of(memory="host", sample_rate=rate)
    assert config_of(memory="device", sample_rate=rate).centres.memory == "device"


@pytest.mark.parametrize("rate", [0.01, 0.4, 0.47, 0.475, 0.486])
def test_host_memory_is_allowed_for_less(rate: float) -> None:
    assert config_of(memory="host", sample_rate=rate).centres.memory == "host"
    shard = range(1_000_000)
    assert 2 * Sampling(1_000_000, rate, seed=0).most_rows(shard) < len(shard)


@pytest.mark.parametrize(("cuda", "accumulation"), [(True, 1), (False, 3)])
def test_the_plan_counts_the_windows_to_the_byte(cuda: bool, accumulation: int) -> None:
    """From the first micro-step on."""
    data = load_config(CONFIGS / "ms1mv2_arcface.toml", ["data.image_size=32"]).data
    centres = made(World(), "arcface", {}, "host", accumulation)
    windows = centres._rows
    assert isinstance(windows, RowsInWindows)
    p = dense.make_problem(CLASSES, BATCH // accumulation, DIM)
    centres.contrast(p.student.requires_grad_(), p.labels)
    rooms = [value.data_ptr() for one in (windows._now, windows._next) for value in one.tensors.values()]
    centres.skip()
    go_on(centres, "arcface", range(2), accumulation)
    assert {value.data_ptr() for one in (windows._now, windows._next) for value in one.tensors.values()} == {*rooms}
    held = sum(value.nbytes for window in (windows._now, windows._next) for value in window.tensors.values())
    kept = sum(value.nbytes for value in centres.store.state().values())
    phase = config_of(accumulation, memory="host", sample_rate=RATE)
    plan = plan_phase(phase, data, CLASSES, Ranks(1, cuda))
    there = {name: bytes_ for name, bytes_ in plan.resident.items() if "centres" in name or "windows" in name}
    assert sum(there.values()) + sum(plan.host.values()) == held + kept
    assert sum(plan.host.values()) == (kept if cuda else 0)


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_the_plan_is_of_the_rank_with_the_largest_window(ranks: int) -> None:
    """Not always the first: shards are cut without regard to blocks."""
    classes, rate = 93_431, 0.3
    data = load_config(CONFIGS / "ms1mv2_arcface.toml", ["data.image_size=32"]).data
    phase = config_of(memory="host", sample_rate=rate).model_copy(update={"global_batch": 2 * ranks})
    sampling = Sampling(classes, rate, seed=0)
    rooms = [sampling.most_rows(shard_of(classes, rank, ranks)) for rank in range(ranks)]
    plan = plan_phase(phase, data, classes, Ranks(ranks, True))
    a_row = sum(plan.host.values()) // plan.rows + 8
    assert plan.resident["centres: two windows"] == 2 * max(rooms) * a_row
    assert max(rooms) > rooms[0] or ranks < 8


def test_host_memory_is_advised_for_samples_that_do_not_fit() -> None:
    small = ["model.name=iresnet18", "model.depth=0.25", "model.width=0.25", "global_batch=16"]
    change, ranks = 'centres.memory = "host"', Ranks(8, True)
    for rate, advised in (("0.1", True), ("1.0", False)):
        keys = [f"student.{key}" for key in (*small, f"centres.sample_rate={rate}")]
        config = load_config(CONFIGS / "ms1mv2_arcface.toml", [*keys, "data.image_size=32"])
        found = dict(itertools.islice(savings(config.student, config.data, 10**9, ranks, None, 80e9), 3))
        assert (change in found) == advised
        if advised:
            assert found[change].peak <= 150e9 < found['centres.store = "bf16"'].peak
            assert sum(found[change].host.values()) == 10**9 // 8 * (2 * 512 * 4 + 5)
            assert found[change].copied["to the device"] == pytest.approx(1.25e7 * 4101, rel=0.01)
