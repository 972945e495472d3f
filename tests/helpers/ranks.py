"""Real gloo ranks for tests: pools of processes that stay up between tests, since starting one costs seconds.

`run(fn, world_size, *args)` calls `fn(world, *args)` on every rank and returns the results in the order of
ranks. `fn` must be importable (a module-level function of a test file). If a rank raises, its traceback is
raised here and the pool is thrown away; but not where all ranks refuse in the same words: they are still in step.
"""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch.multiprocessing as mp

from partialkd.config import DistConfig
from partialkd.errors import PartialKDError, RankLost
from partialkd.world.world import World, free_port

TIMEOUT_S = 240.0
REFUSAL_S = 5.0  # for the others to raise what one rank has raised
_pools: dict[int, RankPool] = {}


class RankFailure(Exception):
    """A rank raised; the message is its traceback."""


class Refused(RankFailure):
    """Every rank raised the same error, in the same words, a PartialKDError: they agreed on it."""


def run(fn: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """`fn(world, *args)` on `world_size` ranks -> results by rank."""
    pool = _pools.get(world_size)
    if pool is None:
        pool = _pools[world_size] = RankPool(world_size)
    try:
        return pool.run(fn, *args)
    except Refused:
        raise
    except BaseException:
        _pools.pop(world_size).close()
        raise


class RankPool:
    """`world_size` processes in one gloo group, each waiting for a function to call."""

    def __init__(self, world_size: int, timeout_s: float = 60.0) -> None:
        context = mp.get_context("spawn")
        port = free_port()
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, world_size, port, theirs, sys.path, timeout_s), daemon=True
            )
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, fn: Callable[..., Any], *args: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((fn, args))
        results: list[Any] = [None] * len(self.pipes)
        failures: dict[int, str] = {}
        open_pipes = dict(enumerate(self.pipes))
        while open_pipes:
            ready = wait(list(open_pipes.values()), timeout=REFUSAL_S if failures else TIMEOUT_S)
            if not ready and not failures:
                raise RankFailure(f"ranks {sorted(open_pipes)} did not answer in {TIMEOUT_S} s")
            for rank in [rank for rank, pipe in open_pipes.items() if pipe in ready]:
                try:
                    failure, results[rank] = open_pipes.pop(rank).recv()
                except (EOFError, ConnectionResetError):
                    raise RankFailure(f"rank {rank} died") from None
                if failure:
                    failures[rank] = f"rank {rank}:\n{failure}"
            if failures and (not ready or any(results[rank] is None for rank in failures)):
                break
        if failures:
            first, *_ = failures.values()
            alike = len(failures) == len(self.pipes) and len(set(results)) == 1 and results[0] is not None
            raise (Refused if alike else RankFailure)(first)
        return results

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(rank: int, world_size: int, port: int, pipe: Connection, path: list[str], timeout_s: float) -> None:
    sys.path[:] = path
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu",
    )  # fmt: skip
    import torch

    torch.set_num_threads(1)
    with World.start(DistConfig(device="cpu", timeout_s=timeout_s)) as world:
        while True:
            try:
                fn, args = pipe.recv()
            except (EOFError, ConnectionResetError):
                return
            try:
                answer = (None, fn(world, *args))
            except BaseException as error:
                agreed = isinstance(error, PartialKDError) and not isinstance(error, RankLost)
                answer = (traceback.format_exc(), repr(error) if agreed else None)
            pipe.send(answer)


@atexit.register
def _close_all() -> None:
    for pool in _pools.values():
        pool.close()
