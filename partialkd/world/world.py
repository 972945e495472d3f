"""The world of ranks: devices, collectives, seeds, start and end. The only module that calls torch.distributed.

Every rank is one process started by torchrun (or the only process, when there is none). NCCL joins CUDA
devices, gloo everything else. Collectives here carry no gradient: the mathematics of docs/flows.md needs none.
"""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from partialkd import errors
from partialkd.config import DistConfig
from partialkd.errors import PartialKDError, Preempted, RankLost, printable
from partialkd.world import flight_recorder
from partialkd.world.numerics import set_numerics
from partialkd.world.part_clock import PartClock
from partialkd.world.rendezvous import Membership, with_timeout

T = TypeVar("T")
COLLECTIVES = "collectives"


@dataclass(frozen=True)
class World:
    """What one rank knows of all ranks. `with World.start(config) as world:` opens and closes it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    store: dist.Store | None = None  # of this start: keys and values all ranks can reach, also when a collective cannot
    launch_store: dist.Store | None = None  # the same for all starts by one torchrun
    members: Membership | None = None
    clock: PartClock = field(default_factory=PartClock, compare=False)  # whose part COLLECTIVES is what ranks wait for
    _works: Iterator[int] = field(default_factory=count)  # counts the calls of on_main, on all ranks alike

    @classmethod
    def start(cls, config: DistConfig | None = None) -> World:
        """Join the ranks that torchrun started; without torchrun, a world of one rank on a free local port."""
        config = config or DistConfig()
        rank, size, local_rank = (int(os.environ.get(key, default)) for key, default in _TORCHRUN_KEYS)
        device = _device(config.device, local_rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
            set_numerics(device)
        if "MASTER_PORT" not in os.environ:
            os.environ.update(
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0"
            )
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=config.timeout_s)))
        members = Membership.join(store, rank, size, config.timeout_s)
        flight_recorder.enable()
        own = dist.PrefixStore(members.name, store)
        restartable = "TORCHELASTIC_RUN_ID" in os.environ
        try:
            dist.init_process_group(
                backend="nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore("ranks", own),
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=config.timeout_s),
                device_id=device if device.type == "cuda" else None,
            )
        except RuntimeError as error:
            raise _not_joined(error, members, size) from error
        return cls(
            rank, size, local_rank, device, dist.PrefixStore("partialkd", own), store if restartable else None, members
        )

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the process group. After a failure it stays: a closed connection would be blamed by the other ranks."""
        if dist.is_initialized() and (kind is None or issubclass(kind, Preempted) or self.size == 1):
            dist.destroy_process_group()

    def leave(self, status: int) -> int:
        """End the process of a rank, at once where there are other ranks -> its exit status.

        No destructor may wait for other ranks then. Nor may the interpreter end by itself: threads of gloo outlive the
        group while anything holds it, and one that lets go of a tensor meanwhile aborts the process.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        if self.size > 1 or self.device.type == "cuda":
            os._exit(status)
        return status

    def remember(self, fact: str, value: str = "") -> None:
        """Tell ranks that torchrun starts in the place of these."""
        if self.launch_store is not None:
            self.launch_store.set(f"partialkd/{fact}", value)

    def remembers(self, fact: str) -> bool:
        """Whether ranks before these, of the same torchrun, have told this."""
        return self.launch_store is not None and self.launch_store.check([f"partialkd/{fact}"])

    def recall(self, fact: str) -> str:
        """What ranks before these have told of it, "" if nothing."""
        if self.launch_store is None or not self.remembers(fact):
            return ""
        return self.launch_store.get(f"partialkd/{fact}").decode()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group of all ranks, with the configured timeout: for a library with collectives of its own."""
        return dist.group.WORLD

    def all_gather(self, x: Tensor) -> Tensor:
        """Gather (b, ...), of equal shape on every rank -> (world_size * b, ...), in the order of ranks."""
        return self.start_all_gather(x)()

    def start_all_gather(self, x: Tensor) -> Callable[[], Tensor]:
        """Begin an all_gather and go on while this rank does something else -> what waits for the result.

        A rank that is lost meanwhile is an error of the wait. On CUDA only what is computed next waits, not the host.
        """
        own = x.detach().contiguous()
        if self.size == 1:
            return own.clone
        out = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        with self.clock.within(COLLECTIVES):
            work = dist.all_gather_into_tensor(out, own, async_op=True)

        def finished() -> Tensor:
            with self.clock.within(COLLECTIVES):
                work.wait()
            return out

        return finished

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Sum (world_size * b, ...) over ranks -> this rank's part of it (b, ...)."""
        if self.size == 1:
            return x
        out = x.new_empty((x.shape[0] // self.size, *x.shape[1:]))
        with self.clock.within(COLLECTIVES):
            dist.reduce_scatter_tensor(out, x.contiguous())
        return out

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over ranks, a new tensor."""
        return self._all_reduce(x, dist.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        """Return the elementwise maximum over ranks, a new tensor."""
        return self._all_reduce(x, dist.ReduceOp.MAX)

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over ranks, a new tensor."""
        return self.sum(x) / self.size

    def gather_objects(self, item: T) -> list[T]:
        """Gather every rank's small picklable object, in the order of ranks, on every rank."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        with self.clock.within(COLLECTIVES):
            dist.all_gather_object(items, item)
        return items

    def broadcast_object(self, item: T) -> T:
        """Send rank 0's small picklable object to every rank."""
        box = [item]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def agree(self, problem: str | None, error: type[Exception]) -> None:
        """Raise `error` on every rank if any rank has a problem, so that no rank waits for one that left."""
        problems = [f"rank {rank}: {text}" for rank, text in enumerate(self.gather_objects(problem)) if text]
        if problems:
            raise error("; ".join(problems))

    def together(self, action: Callable[[], T]) -> T:
        """Act on every rank by itself (collective); an error of one rank is raised on all of them."""
        result, own = None, None
        try:
            result = action()
        except Exception as error:  # raised again below, once every rank knows
            own = error
        failures = self.gather_objects(None if own is None else _shared(own))
        if own is not None and not isinstance(own, PartialKDError):
            raise own
        texts = [f"rank {rank}: {failure[1]}" for rank, failure in enumerate(failures) if failure]
        if texts:
            kind, text, permanent = next(failure for failure in failures if failure)
            alike = all(failure == (kind, text, permanent) for failure in failures)
            shared = kind(*(text if alike else "; ".join(texts)).split("\n"))
            if permanent:
                shared.permanent = True
            raise shared from own
        return cast(T, result)

    def on_main(self, action: Callable[[], T]) -> T:
        """Act on rank 0 while the others wait, however long (collective) -> its result; its error is raised on all."""
        if self.size == 1 or self.members is None:
            return action()
        what, outcome = f"work{next(self._works)}", cast(Callable[[], T], lambda: None)
        if self.is_main:
            with self.members.heartbeat(what):
                outcome = _outcome(action)
        else:
            self.members.wait_for(what)
        return self.broadcast_object(self.together(outcome))

    def _all_reduce(self, x: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        out = x.detach().clone()
        if self.size > 1:
            with self.clock.within(COLLECTIVES):
                dist.all_reduce(out, operation)
        return out


def seed_rank(seed: int, world: World) -> None:
    """Seed torch so that ranks draw different numbers (dropout). What must be equal is seeded by its own generator."""
    torch.manual_seed(seed * 1_000_003 + world.rank)


def _outcome(action: Callable[[], T]) -> Callable[[], T]:
    """Act now; what is returned gives the result, or raises the error, when it is called."""
    try:
        result = action()
    except Exception as error:
        own = error

        def fail() -> T:
            raise own

        return fail
    return lambda: result


def _shared(error: Exception) -> tuple[type[PartialKDError], str, bool]:
    """What ranks tell each other of an error: its kind, its text, and whether another start would meet it again."""
    return _shared_kind(error), _shared_text(error), getattr(error, "permanent", False)


def _shared_kind(error: Exception) -> type[PartialKDError]:
    """What all ranks raise for it: one of partialkd.errors, each of which takes a text."""
    return next((kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__), PartialKDError)


def _shared_text(error: Exception) -> str:
    if isinstance(error, PartialKDError | Preempted):
        return str(error)
    return printable(f"{type(error).__name__}: {error}")


_JOIN_GRACE_S = 5.0  # how long the others may take to report that the ranks could not be joined
_OWN_PORTS = range(10_000, 32_768)  # Linux hands out those from 32768 on
_TORCHRUN_KEYS = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def _device(choice: str, local_rank: int) -> torch.device:
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def collective_failed(error: BaseException) -> bool:
    """True if a collective or the store failed, which is another rank's doing; the gloo backend raises RuntimeError."""
    said_by = isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error))
    return said_by or isinstance(error, dist.DistError)


def _not_joined(error: RuntimeError, members: Membership, size: int) -> RankLost:
    """The error where a rank had joined and was gone before the process group was made, most likely."""

    def missing() -> str:
        members.report_failure()
        return members.describe(members.without_report(_JOIN_GRACE_S))

    suspects = with_timeout(3 * _JOIN_GRACE_S, missing)
    cause = (
        f"no report from {suspects}" if suspects else "every rank is there" if suspects == "" else "the store is gone"
    )
    said = str(error).splitlines()[0]
    return RankLost(f"rank {members.rank} of {size}: the ranks could not be joined: {said}; {cause}")


def free_port() -> int:
    """Find a TCP port of this machine that nobody listens on.

    It is drawn from below those that the system hands out by itself, so that hardly anybody takes it before it is used.
    Where none of a hundred is free, the system hands out one.
    """
    for port in random.SystemRandom().sample(_OWN_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
