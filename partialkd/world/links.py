"""How fast ranks and hosts exchange numbers: latency and bandwidth of an all-reduce, measured.

Bandwidth is the "bus bandwidth" of NCCL's own tests: the bytes of the tensor x 2 (W - 1) / W / seconds, which does not
depend on the number of ranks W where every link is as fast. Collective, all of it; the median of several rounds.
Also here: whose clocks differ, and which ranks compute more slowly than others.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import torch
import torch.distributed as dist

from partialkd.world.world import World

SMALL, LARGE = 1, {"cpu": 1 << 22, "cuda": 1 << 26}  # numbers of float32
ROUNDS = 7
MOST_PAIRS = 28  # of hosts: all of 8; of more, neighbours alone


@dataclass(frozen=True)
class Link:
    """An all-reduce over some ranks."""

    between: str  # hosts, or "all ranks"
    ranks: int
    latency_s: float  # of one number
    bandwidth: float  # bytes/s


def hosts_of(world: World) -> list[str]:
    """Name the host of every rank."""
    return world.gather_objects(socket.gethostname())


def measure_links(world: World) -> list[Link]:
    """Measure all ranks together, and pairs of hosts by the first rank of each; collective, the same on every rank."""
    if world.size == 1:
        return []
    hosts = hosts_of(world)
    first: dict[str, int] = {}
    for rank, host in enumerate(hosts):
        first.setdefault(host, rank)
    places = list(first)
    pairs = list(combinations(places, 2))
    if len(pairs) > MOST_PAIRS:
        pairs = [(one, places[(at + 1) % len(places)]) for at, one in enumerate(places)]
    links = [_measured(world, "all ranks", list(range(world.size)))]
    if world.size > 2:  # else the only pair there may be is all ranks
        links += [_measured(world, f"{a} - {b}", [first[a], first[b]]) for a, b in pairs]
    return links


def clock_skew(world: World) -> dict[str, float]:
    """Seconds by which each host's clock differs from rank 0's, as far as a barrier tells."""
    world.barrier()
    now, hosts = world.gather_objects(time.time()), hosts_of(world)
    return {host: now[rank] - now[0] for rank, host in reversed(list(enumerate(hosts)))}


def product_seconds(world: World, side: int = 512) -> list[float]:
    """Seconds of a product of two (side, side) float32 matrices on every rank, all at the same time."""
    x = torch.ones((side, side), device=world.device)
    _synchronise(world)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        x @ x
        _synchronise(world)
        seconds.append(time.perf_counter() - start)
    return world.gather_objects(median(seconds))


def _measured(world: World, between: str, ranks: list[int]) -> Link:
    group = dist.new_group(ranks) if len(ranks) < world.size else world.group
    found = [0.0, 0.0]
    if world.rank in ranks:
        numbers = LARGE[world.device.type]
        latency, seconds = (_all_reduce_seconds(world, group, count) for count in (SMALL, numbers))
        found = [latency, 4 * numbers * 2 * (len(ranks) - 1) / len(ranks) / seconds]
    found = world.max(torch.tensor(found, dtype=torch.float64, device=world.device)).tolist()
    return Link(between, len(ranks), *found)


def _all_reduce_seconds(world: World, group: dist.ProcessGroup | None, numbers: int) -> float:
    x = torch.zeros(numbers, device=world.device)
    seconds = []
    for _ in range(ROUNDS + 1):  # the first one connects
        start = time.perf_counter()
        dist.all_reduce(x, group=group)
        _synchronise(world)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def _synchronise(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
