"""The base of loaders: batches of one rank in the order of a plan, and how far they have been read.

`Loader` is what training knows of any loader; `SourceLoader` is the base of those that read images themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from partialkd.config import DataConfig
from partialkd.data.batch import FaceBatch
from partialkd.data.images import augment
from partialkd.data.images.carry import carry
from partialkd.data.images.decode import Wanted, decode
from partialkd.data.images.tensors import GREY
from partialkd.data.loading.unreadable import Unreadable
from partialkd.data.order.plan import Plan
from partialkd.data.sources.source import Source
from partialkd.errors import CheckpointError, DataError, Where

_LABELS = "labels"
Finish = Callable[[Tensor, Mapping[str, Tensor]], Tensor]  # (pixels, what it needs on their device) -> images


class Loader(ABC):
    """Gives the batches of one rank in the order of a plan, from any micro-step of any epoch.

    A loader keeps its own position: `for batch in loader` goes on from it, epoch after epoch without end, and
    `state()` says which batch comes next once the ones that were handed out are used. `epoch` leaves it alone.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.micro_steps = plan, plan.micro_steps
        self.position = 0, 0  # epoch counted from 0, micro-steps of it that were handed out
        self._open: WeakSet[Generator[FaceBatch, None, None]] = WeakSet()

    def __iter__(self) -> Iterator[FaceBatch]:
        epoch, done = self.position
        while self.micro_steps:
            for batch in self.epoch(epoch, done):
                done += 1
                self.position = epoch, done
                yield batch
            epoch, done = epoch + 1, 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[FaceBatch]:
        """Give the batches of micro-steps start, start + 1, ... of an epoch; threads start with the first `next`."""
        if not 0 <= start <= self.micro_steps:
            raise ValueError(f"start must be in [0, {self.micro_steps}], got {start}")
        batches = self._batches(epoch, range(start, self.micro_steps))
        self._open.add(batches)
        return batches

    def state(self) -> dict[str, int]:
        """Say how far the reading is, in samples of all ranks: the same place however the global batch is cut."""
        epoch, done = self.position
        return {"epoch": epoch, "samples": done * self.plan.micro_batch}

    def load_state(self, state: dict[str, int]) -> None:
        """Go on where `state` says; CheckpointError if no micro-step begins there."""
        done, rest = divmod(state["samples"], self.plan.micro_batch)
        if rest or not 0 <= done <= self.micro_steps or state["epoch"] < 0:
            most = self.micro_steps * self.plan.micro_batch
            rule = f"samples must be a multiple of {self.plan.micro_batch} up to {most}"
            raise CheckpointError(f"position in the data: {rule}, got {state['samples']} of epoch {state['epoch']}")
        self.position = state["epoch"], done

    def close(self) -> None:
        """End the iterators that still run, and with them their threads."""
        for batches in list(self._open):
            batches.close()

    @abstractmethod
    def _batches(self, epoch: int, steps: range) -> Generator[FaceBatch, None, None]:
        """Give the batches of these micro-steps; what it opened ends with it."""


class SourceLoader(Loader):
    """Reads the images of a source: decoding errors that name the record, unreadable records, augmentation."""

    def __init__(
        self, data: DataConfig, source: Source, plan: Plan, device: torch.device, with_clean: bool = False
    ) -> None:
        super().__init__(plan)
        self.data, self.source, self.device = data, source, device
        self.with_clean = with_clean and bool(data.altering)
        self.wanted = Wanted(data.image_size, data.resize)
        self.unreadable = Unreadable(data, source, plan)

    def close(self) -> None:
        """End the iterators that still run; say how many records were unreadable."""
        super().close()
        self.unreadable.say_total()

    def _decode(self, encoded: bytes, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Decode a record to pixels (H, W, 3) uint8, upright, in `out` if they have its size."""
        return decode(encoded, Where(self.source.name, index), out, self.wanted)

    def _batch(
        self,
        epoch: int,
        pixels: Tensor,
        labels: list[int],
        indices: np.ndarray,
        flips: np.ndarray,
        rows: Mapping[str, np.ndarray] | None = None,
        finish: Finish | None = None,
        clean: Tensor | None = None,
    ) -> FaceBatch:
        """Finish and augment images where they are, in this thread.

        pixels: (b, 3, S, S) float32 on the device, which `finish`, where it is given, normalises in place; `rows` is
        what it needs. To the device these, the labels and the numbers of the augmentation go in one copy.
        clean: the images in colour, where they are wanted and nothing is left to finish.
        """
        changes = augment.prepare(augment.draw(self.data.augment, self.plan.seed, epoch, indices), pixels.shape[3])
        arrays = {_LABELS: np.array(labels, dtype=np.int64), **(rows or {}), **changes.arrays}
        there = carry(arrays, pixels.device)
        if self.with_clean and clean is None:
            assert finish is not None, "a loader that finishes its images itself gives those in colour too"
            clean = finish(pixels.clone(), {name: chosen for name, chosen in there.items() if name != GREY})
        images = finish(pixels, there) if finish else pixels
        changes.apply(images, there)
        return FaceBatch(images, there[_LABELS], torch.from_numpy(indices), torch.from_numpy(flips), clean)


def read_record(source: Source, index: int) -> tuple[bytes, int]:
    """Read encoded bytes and class id; whatever the disk says becomes a `DataError` naming the record."""
    try:
        return source.read(index)
    except OSError as error:
        raise DataError(f"{source.name(index)}: cannot be read: {error}") from error
