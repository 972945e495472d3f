"""Keep centres in host memory, and bring the rows of a step, and of the next one, to the device in windows.

With `centres.memory = "host"` a rank's store stays on the CPU. A step reads a *window*, a small store on the device:
the sampled rows side by side, then the rows of the batch's own classes that were not sampled, brought in by the
micro-step that is the first to need them. The sweep, `look` and the row optimisers act on it as on any store. Its rows
know their class ids, so that rounding draws the bits that it would draw in the store.

There are two windows. What a step samples is a function of (seed, step, class id), so the next step is known:

- first `contrast` of step t: the host waits for all copies. Rows of its window that step t - 1 changed after they were
  copied are copied again, from window to window; then the rows of step t + 1 begin to arrive in the other window.
- `Centres.step`: what changed begins to go back: nothing (fixed centres), the batch's classes (moving averages), the
  whole window with its moments (trainable). The store itself is up to date after `settle`, which `Centres.store` does.
- `Centres.skip`: the window is given up. The store still has everything as it was, so nothing is kept for it.

Equal to a store on the device: bit for bit where the sweep's chunks hold the same rows in the same order (moving
averages in any case, they read no sums), else up to the rounding of sums: side by side, all sampled rows are one piece,
and the own classes of later micro-steps follow in order of arrival. Extra memory of the device: two windows, each as
many rows as a step can sample and N for every micro-step.

On CUDA the store is page-locked, all of it, and copies have a stream of their own, beside the computation; on the CPU
they are done at once, by the same calls. Every micro-step makes the host wait for the computation: it brings in the
batch's classes that were not sampled, and has to know which.
Errors: PartialKDError on all ranks where the system refuses to page-lock that much.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from partialkd.centres.gathered import OwnRows
from partialkd.centres.row_filter import RowFilter
from partialkd.centres.row_memory import RowMemory
from partialkd.centres.sampling import Sampling
from partialkd.centres.store import MOMENT, CentreStore
from partialkd.errors import PartialKDError
from partialkd.world.world import World

COPIED_AT_ONCE = 1 << 13  # rows from window to window, which goes through a copy of them
# Bytes. From here on the C library maps memory for a tensor alone, which is locked as it lies; smaller ones, which may
# share a page, are moved.
LOCKED_FROM = 32 << 20


class Window:
    """Rows of a store in host memory, side by side on the device: those of a step's runs, then others."""

    def __init__(self, host: CentreStore, device: torch.device) -> None:
        self.host, self.device = host, device
        self.step: int | None = None  # whose sampled rows it holds
        self.sampled = self.count = 0  # rows of the runs, all rows
        self.tensors: dict[str, Tensor] = {}  # as the store's state, and the rows' class ids; (room, ...)
        self._runs = RowFilter(0, torch.empty(0, dtype=torch.int64))

    def reserve(self, room: int) -> None:
        """Have room for so many rows; those that are held stay."""
        ids = torch.empty(0, dtype=torch.int64)
        if self.tensors and len(self.tensors["ids"]) >= room:
            return
        for name, value in {**self.host.state(), "ids": ids}.items():
            held = self.tensors.pop(name)[: self.count] if self.count else None
            self.tensors[name] = torch.empty(room, *value.shape[1:], dtype=value.dtype, device=self.device)
            if held is not None:
                self.tensors[name][: self.count] = held

    def fill(self, step: int, runs: Sequence[range]) -> None:
        """Hold the rows of these runs, and no others."""
        state, ids, first = self.host.state(), self.tensors["ids"], self.host.shard.start
        self.step, self.count = step, 0
        self._runs = RowFilter(len(self.host.shard), ids[:0], runs)
        for run in runs:
            part = slice(self.count, self.count + len(run))
            for name, value in state.items():
                self.tensors[name][part].copy_(value[run.start : run.stop], non_blocking=True)
            torch.arange(first + run.start, first + run.stop, out=ids[part])
            self.count = part.stop
        self.sampled = self.count

    def add(self, rows: Tensor) -> None:
        """Hold these rows too (n,) int64, on the CPU; there is room."""
        part = slice(self.count, self.count + len(rows))
        for name, value in self.host.state().items():
            self.tensors[name][part] = value[rows].to(self.device)
        self.tensors["ids"][part] = (rows + self.host.shard.start).to(self.device)
        self.count = part.stop

    def place(self, rows: Tensor) -> Tensor:
        """Turn rows of the store (n,) into rows of the window (n,), -1 for those that it does not hold."""
        there = self._runs.place(rows)
        added, order = (self.tensors["ids"][self.sampled : self.count] - self.host.shard.start).sort()
        if not len(added):
            return there
        at = torch.searchsorted(added, rows).clamp_max_(len(added) - 1)
        return torch.where(added[at] == rows, self.sampled + order[at], there)

    def copy_from(self, other: Window, places: Tensor) -> None:
        """Copy the rows at these places (n,) of the other window, where this one holds them as well."""
        there = self.place(other.tensors["ids"][places] - self.host.shard.start)
        for part in (there >= 0).nonzero().squeeze(1).split(COPIED_AT_ONCE):
            for name, value in self.tensors.items():
                value[there[part]] = other.tensors[name][places[part]]

    def send_back(self) -> None:
        """Copy the rows of the runs back to where they are kept."""
        state, start = self.host.state(), 0
        for run in self._runs.runs:
            for name, value in state.items():
                value[run.start : run.stop].copy_(self.tensors[name][start : start + len(run)], non_blocking=True)
            start += len(run)

    def view(self) -> CentreStore:
        """The rows held, as a store; what is written to it is written to the window."""
        parts = {name: value[: self.count] for name, value in self.tensors.items()}
        moments = {key.removeprefix(MOMENT): x for key, x in parts.items() if key.startswith(MOMENT)}
        return CentreStore(
            range(self.count), self.host.num_classes, parts["unit"], parts["length"], parts["seen"],
            moments=moments, scale=parts.get("scale"), ids=parts["ids"],
        )  # fmt: skip

    def seen_elsewhere(self) -> int:
        """Count the rows of the store that it does not hold and that may be negatives."""
        if self.host.everything_seen:
            return len(self.host.shard) - self.count
        held = self.tensors["ids"][: self.count].cpu() - self.host.shard.start
        return int(self.host.seen.sum()) - int(self.host.seen[held].sum())


class RowsInWindows(RowMemory):
    """Rows that come from host memory, a step ahead, and go back changed."""

    def __init__(self, store: CentreStore, world: World, sampling: Sampling, accumulation: int) -> None:
        self.store = self.working = store
        self.device, self.sampling, self.accumulation = world.device, sampling, accumulation
        device = self.device
        self._now, self._next = Window(store, device), Window(store, device)
        self._lane = CopyStream(device)
        self._most, self._micro_steps, self._room = sampling.most_rows(store.shard), 0, 0
        self._moving: list[Tensor] = []  # places in this step's window that `look` moves
        self._changed: list[Tensor] = []  # that the last step has changed
        self._returning: list[dict[str, Tensor]] = []  # rows on their way, by tensor, with their class ids
        if device.type == "cuda":
            world.together(lambda: _lock_pages(self, store))

    def enter(self, own: OwnRows, step: int) -> OwnRows:
        if self._now.step != step:  # else nothing is on its way back, and what comes is for the next step
            self.settle()
            self._turn_to(step, len(own.row))
        window = self._now
        self._micro_steps += 1
        missing = own.row[own.owned & (window.place(own.row) < 0)].unique().cpu()
        self._room = max(self._room, self._micro_steps * len(own.row))
        window.reserve(self._most + self._room)
        window.add(missing)
        self.working = window.view()
        return replace(own, store=self.working, row=torch.where(own.owned, window.place(own.row), 0))

    def moves(self, own: OwnRows, undoable: bool) -> None:
        if self._now.count:  # row 0 goes back as it is, for samples of other ranks
            self._moving.append(own.row)

    def filter(self, own: OwnRows, step: int) -> RowFilter:
        seen = None if self.store.everything_seen else self.working.seen
        window = self._now
        runs = [range(window.sampled)] if window.sampled else []
        return RowFilter(window.count, torch.where(own.owned, own.row, -1), runs, seen, window.seen_elsewhere)

    def leave(self, everything: bool) -> None:
        window, moving = self._now, self._moving
        self._moving = []
        if everything:
            moving = [torch.arange(window.count, device=self.device)]
        if not moving:
            return
        # What was compared with in earlier micro-steps has no `seen` of the rows that came later.
        assert not everything or self.store.everything_seen, "trained centres are all negatives"
        places = torch.cat(moving)
        self._changed.append(places)
        with self._lane.copying():
            if everything:
                window.send_back()
                places = places[window.sampled :]
            self._returning.append({name: self._lane.to_host(x[places]) for name, x in window.tensors.items()})

    def undo(self) -> None:
        self._moving.clear()
        self._now.step = None  # to be filled from the store again

    def forget(self) -> None:
        self.undo()
        self.settle()
        self._changed.clear()
        self._next.step = None

    def settle(self) -> None:
        self._lane.finish()
        returned, self._returning = self._returning, []
        state = self.store.state()
        for parts in returned:
            rows = parts["ids"] - self.store.shard.start
            for name, value in state.items():
                value[rows] = parts[name]

    def _turn_to(self, step: int, batch: int) -> None:
        """Bring the window of this step up to date, and begin to fill the next one."""
        self._room, self._micro_steps = max(self._room, self.accumulation * batch), 0
        if self._next.step == step:
            for places in self._changed:
                self._next.copy_from(self._now, places)
            self._now, self._next = self._next, self._now
        else:
            self._fill(self._now, step)
            self._lane.finish()
        self._changed = []
        if self._next.step != step + 1:
            self._fill(self._next, step + 1)

    def _fill(self, window: Window, step: int) -> None:
        window.count = 0
        window.reserve(self._most + self._room)
        with self._lane.copying():
            window.fill(step, self.sampling.runs(self.store.shard, step))


class CopyStream:
    """A stream for copies beside the computation; on the CPU each is done when it is asked for."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Within, copies wait for what has been computed before."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def to_host(self, x: Tensor) -> Tensor:
        """Start a copy to the CPU that is complete after `finish`."""
        return torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda).copy_(x, non_blocking=True)

    def finish(self) -> None:
        """Let the host wait for all copies."""
        if self._stream is not None:
            self._stream.synchronize()


def _lock_pages(owner: RowsInWindows, store: CentreStore) -> None:
    """Page-lock the store until `owner` is gone, so that copies go on by themselves."""
    locked: list[Tensor] = []
    weakref.finalize(owner, _unlock_pages, locked).atexit = False
    for name, x in store.state().items():
        try:
            if x.nbytes >= LOCKED_FROM:
                torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(x.data_ptr(), x.nbytes, 0))
                locked.append(x)
            else:
                store.pin_memory(name)
        except RuntimeError as error:
            rule = 'centres.memory must be "device" where the system does not page-lock the store'
            raise PartialKDError(f'{rule}, got "host": {name}, {x.nbytes} bytes: {error}') from error


def _unlock_pages(tensors: Sequence[Tensor]) -> None:
    torch.cuda.synchronize()  # a window that nobody will read may still be filled
    for x in tensors:
        torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(x.data_ptr()))
