"""From the command line to an exit status: starts the world, runs the job, shows a failure once.

A wrong configuration is shown by rank 0. Of ranks that fail, the first shows its error: one line if it is the
input's fault, a traceback otherwise; the ranks that go down with it stay quiet, so that the cause is not buried.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from partialkd.config import DistConfig
from partialkd.dist import World
from partialkd.errors import ConfigError, PartialKDError, Preempted

T = TypeVar("T")
FAILED, WRONG_CONFIG, STOPPED = 1, 2, 75  # 75: EX_TEMPFAIL, try again later
QUIET_S = 3.0  # a rank with nothing to say leaves this much later, so that rank 0 has said it


def configured(load: Callable[[], T]) -> T:
    """What `load` returns, or the end of the process with status 2 and the error shown by rank 0."""
    try:
        return load()
    except ConfigError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(QUIET_S)  # torchrun ends all ranks when the first one ends
        raise SystemExit(WRONG_CONFIG) from None


def launched(config: DistConfig, body: Callable[[World], Any]) -> int:
    """Run `body` on every rank -> exit status."""
    world = World.start(config)
    try:
        with world:
            body(world)
    except Preempted as stop:
        if world.is_main:
            print(stop, file=sys.stderr)
        return STOPPED
    except Exception as error:
        if world.first_to_fail():
            show(error, world)
        return world.leave(FAILED)
    return 0


def show(error: Exception, world: World) -> None:
    """On the error output: what a user can act on, or where the program failed."""
    if isinstance(error, PartialKDError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        print(f"rank {world.rank} of {world.size} failed:", file=sys.stderr)
        traceback.print_exception(error, file=sys.stderr)
