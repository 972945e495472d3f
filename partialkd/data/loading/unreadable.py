"""Records whose image cannot be read: a run ends at the first one, or others take their place (`data.on_corrupt`).

Unreadable is a record whose bytes the disk does not give, that no decoder takes, or that has another size than
`data.image_size` while `data.resize` is false. What is wrong with the files themselves (their index, headers and
labels, a record that holds no image at all) is found when they are opened, and always ends the run.

With "skip" an unreadable record of training is replaced by another one, drawn uniformly from the whole source by a
hash of (seed, epoch, record, attempt): batch sizes and positions stay what they were, and the batch names the record
that is in it, with its own label, flip and augmentation. The other record may be in the batch already; a P x K batch
then has K - 1 images of one identity. Where records come as they are (no seed: a teacher's pass), the record is left
out and its batch is shorter.
The draw depends on nothing else, so that it is the same on any rank, in both loaders, and when a run is resumed; as
long as a record that cannot be read now could not be read before.

Each rank counts the different records that it met in one phase, and names each once, on stderr. More than
`data.max_corrupt` of them end the run: many unreadable records are a broken disk or the wrong decoder.
Errors: `DataError` naming the record; over the limit the last one, and how many there are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from threading import Lock
from typing import TypeVar

import numpy as np

from partialkd.config import DataConfig
from partialkd.counter_random import hash64
from partialkd.data.order.plan import Plan
from partialkd.data.sources.source import Source
from partialkd.errors import DataError

ATTEMPTS = 100  # records drawn in the place of one
_log = logging.getLogger(__name__)
_SALT = 3  # order/plan.py has 1 and 2, augment.py 100 and above

Item = TypeVar("Item")


class Unreadable:
    """Keeps count of the unreadable records that one loader has met. Safe from several threads."""

    def __init__(self, data: DataConfig, source: Source, plan: Plan) -> None:
        self.skips, self.most = data.on_corrupt == "skip", data.max_corrupt
        self.source, self.plan = source, plan
        self.found: dict[int, str] = {}  # record -> what is wrong with it
        self._lock = Lock()

    def read(self, epoch: int, indices: np.ndarray, read: Callable[[int], Item]) -> tuple[np.ndarray, list[Item]]:
        """Read records (b,) or others in their places -> records (c,) int64, c <= b, and what `read` made of each."""
        chosen: list[int] = []
        items: list[Item] = []
        for index in indices.tolist():
            for candidate in self._candidates(epoch, index):
                try:
                    items.append(read(candidate))
                except DataError as error:
                    self._count(candidate, error)
                    continue
                chosen.append(candidate)
                break
        return np.array(chosen, dtype=np.int64), items

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        """Give the record, then those to take its place; known ones are not tried again."""
        if index not in self.found:
            yield index
        if self.plan.seed is None:
            return
        for attempt in range(ATTEMPTS):
            drawn = int(hash64(self.plan.seed, _SALT, epoch, index, attempt)[0] % np.uint64(len(self.source)))
            if drawn not in self.found:
                yield drawn
        raise DataError(f"{self.source.name(index)}: {ATTEMPTS} records drawn in its place cannot be read either")

    def _count(self, index: int, error: DataError) -> None:
        if not self.skips:
            raise error
        with self._lock:
            if index in self.found:
                return
            self.found[index] = str(error)
            count = len(self.found)
        if count > self.most:
            rule = f"{count} records cannot be read by rank {self.plan.rank}, data.max_corrupt allows {self.most}"
            raise DataError(f"{error} ({rule})") from error
        self._say(f"{error}; {self._what} ({count} of at most {self.most})")

    def say_total(self) -> None:
        """Say in one line how many there were, if any."""
        if self.found:
            self._say(f"{len(self.found)} records could not be read and were {self._what}")

    @property
    def _what(self) -> str:
        return "left out" if self.plan.seed is None else "replaced by others"

    def _say(self, text: str) -> None:
        _log.warning(f"rank {self.plan.rank}: {text}")
