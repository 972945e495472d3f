"""Two ranks that have finished, over and over: python tests/helpers/rank_ends.py REPEATS [--interpreter].

While the process group is held (DeepSpeed holds it) its threads outlive destroy_process_group. One of them that lets go
of a tensor while the interpreter ends wants the interpreter's lock, cannot have it, and aborts the process: "terminate
called without an active exception". It is seldom that late by itself; here it runs only when nothing else does, on the
one processor of its rank. With `--interpreter` the ranks end as any Python program does, which shows the fault.
Prints the exit statuses that were not 0, as `os.waitpid` gives them.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import torch

from partialkd.config import DistConfig
from partialkd.world.launch import launched
from partialkd.world.world import World, free_port

_held: list[Any] = []


def finish(world: World) -> None:
    """The last collectives of a job, whose tensors are let go of in threads that come late."""
    _held.append(world.group)
    world.barrier()  # from here on all its threads are there
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread != threading.get_native_id():
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    for _ in range(3):
        world.gather_objects(list(range(50)))
        world.sum(torch.ones(4))


def rank(number: int, port: int) -> int:
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[number % len(processors)]})
    os.environ.update(RANK=str(number), WORLD_SIZE="2", LOCAL_RANK=str(number))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    return launched(DistConfig(device="cpu", timeout_s=120.0), finish)


def repeat() -> list[int]:
    """Exit statuses of two ranks, forked so that torch is imported once; only the parent returns."""
    port, children = free_port(), []
    for number in range(2):
        child = os.fork()
        if not child:
            sys.exit(rank(number, port))
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


def main() -> None:
    torch.set_num_threads(1)
    if "--interpreter" in sys.argv:
        World.leave = lambda _, status: status  # type: ignore[method-assign]
    for number in range(int(sys.argv[1])):
        statuses = repeat()
        if any(statuses):
            print(f"repeat {number}: statuses {statuses}", flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main()
