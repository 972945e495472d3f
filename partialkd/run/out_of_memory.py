"""Out of memory on one rank: an error that names the rank and says what can be changed, by key and in bytes.

Raised on the rank that it happens to; that rank ends (world/launch.py) and pulls the others down, within seconds on
gloo, on NCCL when torchrun ends them. Allocations of torch (CUDA and CPU), numpy and Python are recognised, and what
C++ libraries say of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from partialkd.errors import OutOfMemory
from partialkd.world.world import World

_SAID = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, whoever asked for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID)


@contextmanager
def advising(key: str, world: World, advise: Callable[[], str]) -> Iterator[None]:
    """Turns an allocation that fails in the phase `key` into OutOfMemory with advice; on this rank alone."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        where = f"{key}: rank {world.rank} of {world.size} is out of memory: {_first_line(error)}"
        raise OutOfMemory(f"{where}; {_advice(advise)}") from error


def _advice(advise: Callable[[], str]) -> str:
    try:
        return advise()
    except Exception as error:  # of whatever kind, it must not hide that memory ran out
        if not is_out_of_memory(error):
            return f"could not be planned: {_first_line(error)}"
        return "nor is there any to plan with: launch/plan.py says elsewhere what would fit"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
