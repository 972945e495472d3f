"""A run goes on at another number of ranks, stage, accumulation, store and memory as if nothing had happened.

One chain of checkpoints, 4 -> 3 -> 2 -> 1 -> 4 ranks, is compared with runs that nobody disturbed on 1 and on 2 ranks.
The network is tiny, everything else is the trainer's own. Cases share launches, since starting ranks costs seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.ranks import run
from helpers.run_state_cases import (
    ADADISTILL,
    ARCFACE,
    BATCH,
    CASES,
    CHAIN,
    IMAGES,
    LIVE,
    SGD,
    STEPS,
    Case,
    config_of,
    losses_of,
    opened,
    train,
)
from partialkd.config import Config
from partialkd.config.load import load_config, parse_config, save_config
from partialkd.config.resume import check_same_run
from partialkd.errors import ConfigError
from partialkd.training.phase_plan import check_batch
from partialkd.training.state import stream_seed
from partialkd.world.world import World


@dataclass
class Told:
    """What a run did, step by step, and its end."""

    losses: list[float]
    labels: list[list[int]]
    network: dict[str, Tensor]
    centres: Tensor


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Told]]:
    """By case: the "chain", and runs "1" and "2" on as many ranks that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs")
    legs = {"1": ((1, 4),), "2": ((2, 4),), "chain": tuple((size, leg) for leg, (size, _) in enumerate(CHAIN))}
    told: dict[str, dict[str, Told]] = {case.name: {} for case in CASES}
    for kind, parts in legs.items():
        labels: dict[str, list[list[int]]] = {case.name: [] for case in CASES}
        for size, leg in parts:
            configs = [config_of(case, leg, folder / kind / case.name) for case in CASES]
            ranks = run(train, size, configs)
            for case, *results in zip(CASES, *ranks, strict=True):
                labels[case.name] += results[0]["labels"]
                centres = torch.cat([result["centres"] for result in results])
                losses = losses_of(folder / kind / case.name) if leg == 4 else []
                told[case.name][kind] = Told(losses, labels[case.name], results[0]["network"], centres)
    return told


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("undisturbed", ["1", "2"])
def test_the_chain_learns_what_an_undisturbed_run_learns(
    case: Case, undisturbed: str, runs: dict[str, dict[str, Told]]
) -> None:
    """Losses, the network and the centres."""
    broken, straight = runs[case.name]["chain"], runs[case.name][undisturbed]
    assert broken.losses == pytest.approx(straight.losses, rel=1e-6)
    assert max(straight.losses) > min(straight.losses) * 1.01  # they are not all alike
    torch.testing.assert_close(broken.network, straight.network, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(broken.centres, straight.centres, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.distributed
def test_every_record_is_read_once_an_epoch(runs: dict[str, dict[str, Told]]) -> None:
    """Each record is a class of its own here: over resumes in mid-epoch at other world sizes and accumulations."""
    steps, straight = runs["trainable"]["chain"].labels, runs["trainable"]["1"].labels
    assert steps == straight
    for epoch in (steps[:5], steps[5:]):
        read = list(chain.from_iterable(epoch))
        assert len(read) == len(set(read)) == IMAGES - IMAGES % BATCH
    assert steps[0] != steps[5]


def look(world: World, config: Config) -> dict[str, Any]:
    with opened(world, config, dropout=0.5) as made:
        made.resume()
        return {"buffers": made.student.local_state(), "numbers": torch.rand(8).tolist()}


@pytest.mark.distributed
def test_random_numbers_and_running_statistics_at_another_number_of_ranks(tmp_path: Path) -> None:
    config = config_of(LIVE, 0, tmp_path)
    saved = [rank[0] for rank in run(train, 2, [config], 0.5)]
    same, other, again = run(look, 2, config), run(look, 3, config), run(look, 3, config)
    assert [rank["numbers"] for rank in same] == [rank["numbers"] for rank in saved]
    streams = [rank["numbers"] for rank in (*saved, *other)]
    assert len({tuple(numbers) for numbers in streams}) == 5  # no two ranks draw the same, and nothing is drawn twice
    assert [rank["numbers"] for rank in again] == [rank["numbers"] for rank in other]
    for name in ("buffer.bn.running_mean", "buffer.bn2.running_var"):
        first, second = (rank["buffers"][name] for rank in saved)
        assert not torch.equal(first, second)  # live BatchNorm: of each rank's own batches
        assert torch.equal(same[1]["buffers"][name], second)
        for rank in other:
            torch.testing.assert_close(rank["buffers"][name], (first + second) / 2)


def test_seeds_of_streams_are_all_different() -> None:
    seeds = {stream_seed(seed, rank, step) for seed in range(4) for rank in range(16) for step in range(50)}
    assert len(seeds) == 4 * 16 * 50
    assert all(0 <= seed < 1 << 63 for seed in seeds)  # what torch.manual_seed takes


def one_rank(config: Config) -> list[float]:
    run(train, 1, [config])
    return losses_of(Path(config.run.folder), config.student.max_steps or STEPS)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("method", "narrow"),
    [(ARCFACE, "bf16"), (ADADISTILL, "bf16"), (ADADISTILL, "int8")],
    ids=["trainable", "ema", "ema-int8"],
)
def test_the_precision_of_the_store_may_change(method: dict[str, Any], narrow: str, tmp_path: Path) -> None:
    """There and back: the losses stay within the rounding of the cosines (bf16: 2**-8, int8: 1 / 127, at scale 16)."""
    case = Case("store", method, SGD, (0,) * 5)
    straight = one_rank(config_of(case, 2, tmp_path / "a"))
    for leg, store in enumerate(("fp32", narrow, "fp32")):
        changed = one_rank(config_of(case, leg, tmp_path / "b", centres={"store": store}))
    assert changed[:2] == straight[:2]
    assert changed[2] != straight[2]
    assert changed == pytest.approx(straight, rel=0.02)


def test_a_number_of_ranks_that_does_not_divide_the_batch_is_refused_with_those_that_do() -> None:
    phase = config_of(CASES[0], 1, Path("runs")).student  # accumulation 2
    with pytest.raises(ConfigError) as caught:
        check_batch("student", phase, 4)
    assert str(caught.value) == (
        "student.global_batch must be divisible by accumulation x world size (2 x 4 = 8), got 12; "
        "with this batch and accumulation the world size may be 1, 2, 3, 6"
    )


@pytest.mark.parametrize("phase", ["teacher.train", "student", "alone"])
def test_keys_that_may_differ_on_resume(phase: str, tmp_path: Path) -> None:
    trained = config_of(CASES[1], 0, tmp_path).model_dump(mode="json")
    other = {key: value for key, value in trained["student"].items() if key != "generations"}
    tree = {**trained, "alone": other, "teacher": {"source": "train", "train": other}}
    save_config(parse_config(tree), tmp_path / "config.toml")
    free = (
        "accumulation=3",
        "zero_stage=3",
        'centres.store="bf16"',
        'centres.moments="bf16"',
        "centres.memory=device",
        "centres.backend=reference",
        "centres.chunk_rows=7",
        "centres.products=fp32",
    )
    changed = load_config(tmp_path / "config.toml", [f"{phase}.{key}" for key in free])
    check_same_run(changed, tmp_path / "config.toml")
    other = load_config(tmp_path / "config.toml", [f"{phase}.centres.sample_rate=0.3"])
    with pytest.raises(ConfigError, match=rf"{phase}.centres.sample_rate: must be 0.4, got 0.3"):
        check_same_run(other, tmp_path / "config.toml")
