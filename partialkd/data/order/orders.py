"""Orders say which record stands at which position of an epoch: pure functions of (seed, epoch, position).

`GlobalOrder`    a random order of all records ("shuffle" = "global")
`BlockOrder`     blocks of consecutive records in random order, mixed within groups of blocks ("blocks")
`BalancedOrder`  every identity equally often ("balanced")
`PKOrder`        global batches of P identities with K images each ("pk")
`HalfPKOrder`    global batches of which every second image is of a random order, the others P x K ("half_pk")

No order keeps a permutation: a position is computed when it is asked for (counter_random.py). Memory: none
for the first; 20 bytes per *block* for the second; 12 bytes per identity for the last three, and 4 bytes per record
where records are not sorted by class id.

Weights. A data set of n records with weight w gives round(w * n) records (at least one) to every epoch: with 1
each record once, with 2 twice, with 0.5 half of them. It is read in passes, each a new random order of all its
records, and an epoch takes up where the one before it stopped: after any number of epochs no record of it has been
read more than once more often than another (but for those in the last, incomplete batch of an epoch). An epoch in
which one pass ends and the next begins may hold a record once more than another, 0.6 twice or not at all.

Blocks. Files are often sorted by identity, so a block of B records holds few identities and all their images. Two
records of an identity meet in the same group of G blocks almost always, and pairs of one identity are n / (G * B)
times as frequent in a batch as with a global shuffle. G * B records should be many batches' worth, and many times
the images of an identity; the page cache of a host should hold 2 * G * B records (of about 10 kB).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from partialkd.config import DataConfig
from partialkd.counter_random import hash64, permute
from partialkd.data.sources.source import Source
from partialkd.errors import ConfigError

_EPOCH, _PASS, _GROUP, _CLASSES, _IMAGES = range(101, 106)  # salts
_CHUNK = 1 << 18  # labels looked at in one go


class Order(Protocol):
    """Maps the positions 0..length-1 of every epoch to records."""

    length: int

    def records(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Map positions (n,) int64 to indices (n,) int64 into the source."""
        ...


def make_order(data: DataConfig, source: Source, global_batch: int, seed: int) -> Order:
    """Make the order that `data.sampler`, `data.shuffle` and the weights of `data.parts` name."""
    if data.sampler == "balanced":
        return BalancedOrder(source, seed, global_batch)
    if data.sampler == "pk":
        return PKOrder(source, seed, global_batch, data.images_per_identity)
    if data.sampler == "half_pk":
        return HalfPKOrder(source, seed, global_batch, data.images_per_identity)
    sizes, weights = source.sizes, [part.weight for part in data.parts] or [1.0]
    if data.shuffle == "blocks":
        return BlockOrder(sizes, weights, seed, data.block_records, data.group_blocks)
    return GlobalOrder(sizes, weights, seed)


class Passes:
    """Reads several sets of items in endless passes; an epoch takes the next round(weight * size) items of each."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self.sizes, self.seed = np.array(sizes, dtype=np.int64), seed
        wanted = np.rint(self.sizes * np.array(weights, dtype=np.float64)).astype(np.int64)
        self.taken = np.maximum(wanted, 1)  # per epoch
        self.starts, self.ends = np.cumsum(self.sizes) - self.sizes, np.cumsum(self.taken)
        self.length = int(self.ends[-1])

    def items(self, epoch: int | np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Map draws (n,) in [0, length) of an epoch, or of an epoch each, to items (n,), numbered through all sets."""
        which = np.searchsorted(self.ends, draws, side="right")
        size, taken = self.sizes[which], self.taken[which]
        number, item = np.divmod(epoch * taken + draws - (self.ends[which] - taken), size)  # pass, place in it
        part = np.flatnonzero(taken % size)  # of a set that gives whole passes every item is taken: no order needed
        keys = hash64(self.seed, _PASS, which[part], number[part])
        item[part] = permute(size[part], keys, item[part])
        return self.starts[which] + item


class GlobalOrder:
    """Gives all records of the data sets, each as often as its weight says, in a new random order every epoch."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self.seed, self.passes = seed, Passes(sizes, weights, seed)
        self.length = self.passes.length

    def records(self, epoch: int | np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Map positions (n,) of one epoch, or each of its own (n,), to records (n,)."""
        return self.passes.items(epoch, permute(self.length, hash64(self.seed, _EPOCH, epoch), positions))


class BlockOrder:
    """Gives blocks of `block` consecutive records in random order; `group` blocks at a time are mixed by record.

    The last block of a data set is shorter. Weights act on blocks; where one is not a whole number, an epoch may
    hold up to one or two shorter blocks, and `length` is what every epoch has.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, block: int, group: int) -> None:
        self.seed, self.block, self.group = seed, block, group
        self.sizes = np.array(sizes, dtype=np.int64)
        counts = -(-self.sizes // block)
        self.passes = Passes(counts.tolist(), weights, seed)
        whole, rest = np.divmod(self.passes.taken, counts)
        shorter = whole + np.minimum(rest, 2)  # last blocks, at most: an epoch may begin and end inside a pass
        self.length = int((self.passes.taken * block - (counts * block - self.sizes) * shorter).clip(0).sum())
        self._cached: tuple[int, np.ndarray, np.ndarray] = (-1, np.empty(0, np.int64), np.empty(0, np.int64))

    def blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first records (m,) int64 of an epoch's blocks in order, and the position after each (m,) int64."""
        if self._cached[0] != epoch:
            count = self.passes.length
            draws = permute(count, hash64(self.seed, _EPOCH, epoch), np.arange(count))
            blocks = self.passes.items(epoch, draws)
            which = np.searchsorted(self.passes.starts, blocks, side="right") - 1
            inside = (blocks - self.passes.starts[which]) * self.block
            starts = (np.cumsum(self.sizes) - self.sizes)[which] + inside
            ends = np.cumsum(np.minimum(self.sizes[which] - inside, self.block))
            self._cached = (epoch, starts, ends)
        return self._cached[1:]

    def records(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        starts, ends = self.blocks(epoch)
        last = np.minimum(np.arange(self.group, len(ends) + self.group, self.group), len(ends)) - 1
        group_ends = ends[last]
        group_starts = np.concatenate([[0], group_ends[:-1]])
        which = np.searchsorted(group_ends, positions, side="right")
        start = group_starts[which]
        mixed = permute(group_ends[which] - start, hash64(self.seed, _GROUP, epoch, which), positions - start)
        block = np.searchsorted(ends, start + mixed, side="right")
        before = np.where(block > 0, ends[block - 1], 0)
        return starts[block] + start + mixed - before


class Identities:
    """Finds the records of each identity; identities without one are not counted."""

    def __init__(self, source: Source) -> None:
        counts = np.zeros(source.num_classes, dtype=np.int64)
        previous, ascending = 0, True
        for start in range(0, len(source), _CHUNK):
            labels = source.labels(start, min(start + _CHUNK, len(source)))
            counts += np.bincount(labels, minlength=len(counts))
            ascending &= bool(labels[0] >= previous and (labels[1:] >= labels[:-1]).all())
            previous = int(labels[-1])
        self.class_ids = np.flatnonzero(counts).astype(np.int32)
        self.counts = counts[self.class_ids].astype(np.int32)  # images of each
        self._starts = np.cumsum(counts)[self.class_ids] - self.counts
        self._records = None if ascending else _by_class(source, np.cumsum(counts) - counts)

    def __len__(self) -> int:
        return len(self.class_ids)

    def records(self, identity: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Return the `image`-th records (n,) int64 of identities (n,), both counted from 0."""
        at = self._starts[identity] + image
        return at if self._records is None else self._records[at].astype(np.int64)


def _by_class(source: Source, free: np.ndarray) -> np.ndarray:
    """Sort the records (n,) int32 by class id, in chunks. free (C,) int64: the first place of each class; filled up."""
    records = np.empty(len(source), dtype=np.int32 if len(source) < 1 << 31 else np.int64)
    for start in range(0, len(source), _CHUNK):
        labels = source.labels(start, min(start + _CHUNK, len(source)))
        order = np.argsort(labels, kind="stable")
        ordered = labels[order]
        first = np.searchsorted(ordered, ordered, side="left")  # of the same class in this chunk
        records[free[ordered] + np.arange(len(ordered)) - first] = start + order
        free += np.bincount(labels, minlength=len(free))
    return records


class BalancedOrder:
    """Gives every identity equally often: passes over the identities, each time with the next image of each.

    An epoch has as many global batches as the data would fill. Passes go on from epoch to epoch, so no identity is
    ever read more than once more often than another; its images come in random order, all before one comes again.
    """

    def __init__(self, source: Source, seed: int, global_batch: int) -> None:
        self.identities, self.seed = Identities(source), seed
        self.length = len(source) // global_batch * global_batch

    def records(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        number, place = np.divmod(epoch * self.length + positions, len(self.identities))  # pass, place in it
        identity = permute(len(self.identities), hash64(self.seed, _CLASSES, number), place)
        images = self.identities.counts[identity].astype(np.int64)
        turn, image = np.divmod(number, images)  # through the identity's images
        return self.identities.records(identity, permute(images, hash64(self.seed, _IMAGES, identity, turn), image))


class PKOrder:
    """Gives global batches of P different identities, K images of each, one identity after the other.

    Every pass over the identities is a new random order of them, cut into batches of P; those left over (fewer than
    P) wait for the next pass. The K images are different ones, and all images of an identity come (but for a rest
    smaller than K) before one comes again. An identity with fewer than K repeats its images evenly to make K.
    Where K divides a rank's batch, no identity is split between ranks.
    An epoch has as many batches as the data would fill.
    """

    def __init__(
        self, source: Source, seed: int, global_batch: int, images_per_identity: int, of: str = "the global batch"
    ) -> None:
        """of: what `global_batch` is, for messages."""
        self.identities, self.seed, self.batch, self.k = Identities(source), seed, global_batch, images_per_identity
        if global_batch % self.k:
            raise ConfigError(f"data.images_per_identity must divide {of} ({global_batch}), got {self.k}")
        self.p = global_batch // self.k
        if len(self.identities) < self.p:
            rule = f"must be at least {of} / number of identities ({global_batch} / {len(self.identities)})"
            raise ConfigError(f"data.images_per_identity {rule}, got {self.k}")
        self.length = len(source) // global_batch * global_batch

    def records(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        batch, place = np.divmod(epoch * self.length + positions, self.batch)
        number, batch = np.divmod(batch, len(self.identities) // self.p)  # pass, batch in it
        slot, image = np.divmod(place, self.k)
        key = hash64(self.seed, _CLASSES, number)
        identity = permute(len(self.identities), key, batch * self.p + slot)
        images = self.identities.counts[identity].astype(np.int64)
        turn, window = np.divmod(number, np.maximum(images // self.k, 1))  # K images after the other
        chosen = (window * self.k + image) % images
        return self.identities.records(identity, permute(images, hash64(self.seed, _IMAGES, identity, turn), chosen))


class HalfPKOrder:
    """Gives global batches that are half a random order of all records, half P identities with K images each.

    Every second place is of the one, the places between of the other, so that each rank's part is half and half at any
    number of ranks. Both go on from epoch to epoch, the random half in passes over all records. An epoch has as many
    batches as the data would fill. Source: the sampler of EKD (arXiv:2206.02325), which draws both halves at random,
    with repetitions, for each rank by itself, and counts an epoch by its random half alone.
    """

    def __init__(self, source: Source, seed: int, global_batch: int, images_per_identity: int) -> None:
        half, odd = divmod(global_batch, 2)
        if odd:
            raise ConfigError(f'data.sampler must not be "half_pk" with an odd global batch, got {global_batch}')
        self.whole = GlobalOrder(source.sizes, [1.0] * len(source.sizes), seed)
        self.pk = PKOrder(source, seed, half, images_per_identity, "half the global batch")
        self.length = len(source) // global_batch * global_batch

    def records(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        place, second = np.divmod(epoch * self.length + positions, 2)
        number, place_in_pass = np.divmod(place, self.whole.length)
        shuffled = self.whole.records(number, place_in_pass)
        return np.where(second == 0, shuffled, self.pk.records(0, place))


def check_positives(order: Order) -> None:
    """Raise ConfigError if no batch of this order holds two different images of an identity."""
    order = order.pk if isinstance(order, HalfPKOrder) else order
    if isinstance(order, PKOrder) and order.identities.counts.max() < 2:
        raise ConfigError("data.sampler: no identity of the data has two images, so that there are no pairs of one")
