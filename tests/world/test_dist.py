"""World: collectives at world sizes 1, 2, 3; a problem of one rank becomes everybody's error."""

from __future__ import annotations

import time

import pytest
import torch

from helpers.ranks import RankFailure, RankPool, run
from partialkd.errors import DataError
from partialkd.world.world import World, seed_rank


def _collectives(world: World) -> dict[str, object]:
    mine = torch.arange(2.0) + 10 * world.rank
    parts = torch.arange(2.0 * world.size)
    seed_rank(7, world)
    begun = world.start_all_gather(mine)
    return {
        "gathered": world.all_gather(mine),
        "scattered": world.reduce_scatter(parts),
        "sum": world.sum(mine),
        "max": world.max(mine),
        "mean": world.mean(mine),
        "objects": world.gather_objects(world.rank),
        "from_main": world.broadcast_object(f"rank {world.rank}"),
        "draw": torch.rand(1).item(),
        "begun": begun(),
    }


@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 3])
def test_collectives(size: int) -> None:
    everyone = torch.cat([torch.arange(2.0) + 10 * rank for rank in range(size)])
    results = run(_collectives, size)
    for rank, got in enumerate(results):
        torch.testing.assert_close(got["gathered"], everyone)
        assert torch.equal(got["begun"], everyone)
        torch.testing.assert_close(got["scattered"], size * torch.arange(2.0 * size)[2 * rank : 2 * rank + 2])
        torch.testing.assert_close(got["sum"], everyone.view(size, 2).sum(0))
        torch.testing.assert_close(got["max"], everyone.view(size, 2).amax(0))
        torch.testing.assert_close(got["mean"], everyone.view(size, 2).mean(0))
        assert got["objects"] == list(range(size))
        assert got["from_main"] == "rank 0"
    assert len({got["draw"] for got in results}) == size


def _agree(world: World) -> None:
    world.agree("record 7 is broken" if world.rank == 1 else None, DataError)


@pytest.mark.distributed
def test_one_ranks_problem_is_everybodys_error() -> None:
    with pytest.raises(RankFailure, match=r"DataError: rank 1: record 7 is broken"):
        run(_agree, 2)


def _together(world: World, kind: type[Exception]) -> int:
    def act() -> int:
        if world.rank == 1:
            raise kind("record 7 is broken")
        return world.rank

    return world.together(act)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("kind", "said"),
    [(DataError, "DataError: rank 1: record 7 is broken"), (ValueError, "record 7 is broken")],
)
def test_acting_together_fails_together(kind: type[Exception], said: str) -> None:
    with pytest.raises(RankFailure, match=said):
        run(_together, 3, kind)


def _on_main(world: World) -> str:
    return world.on_main(lambda: f"made by {world.rank}")


@pytest.mark.slow
@pytest.mark.distributed
def test_on_main_gives_everybody_the_result() -> None:
    assert run(_on_main, 3) == ["made by 0"] * 3


def _absent(world: World, begun: bool) -> None:
    if world.rank == 1:
        time.sleep(20)
    if begun:
        world.start_all_gather(torch.ones(1))()
    else:
        world.sum(torch.ones(1))


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True])
def test_a_collective_that_waits_longer_than_the_timeout_ends(begun: bool) -> None:
    pool = RankPool(2, timeout_s=2.0)
    try:
        with pytest.raises(RankFailure, match=r"rank 0:[\s\S]*(?i:timed? ?out)"):
            pool.run(_absent, begun)
    finally:
        pool.close()
