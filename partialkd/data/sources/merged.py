"""Several data sets become one source of training, and no file is rewritten; or one, with some identities left out.

In every part, in this order: images and identities of its exclude lists are left out, its label map gives new ids, its
offset is added (by default the first number after the ids of the parts before it). Two parts may use one id only where
`data.shared_identities` says that they are the same persons. Identities with fewer than `min_images` over all parts
are left out, and the ids that remain are numbered 0..C-1 in ascending order. `origins` leads back from a class id to
(part, identity).

Memory, beyond the parts' own: 4 bytes per record of a part of which some images are left out, 4 bytes per identity.
Errors: `DataError` naming file and identity; `ConfigError` naming the parts whose ids meet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.config import PartConfig
from partialkd.data.sources.class_counts import images_of_classes
from partialkd.data.sources.identities import LEFT_OUT, Names, excluded, mapped
from partialkd.data.sources.left_out_images import NO_IMAGES, excluded_images
from partialkd.data.sources.source import Source, check_index, digest_of
from partialkd.errors import ConfigError, DataError

_CHUNK = 1 << 18  # labels looked at in one go


@dataclass(frozen=True)
class Part:
    """One data set, and which of its images and identities are used."""

    source: Source
    class_ids: np.ndarray  # (C of the part,) int32: class id in training, LEFT_OUT
    kept: range | np.ndarray  # (n,) images of the part that are used, ascending
    left_out: np.ndarray = field(default_factory=NO_IMAGES.copy)  # (k,) int64 images of the exclude list

    def labels(self, start: int, stop: int) -> np.ndarray:
        """Return the class ids in training of these images. Where few are used, labels are read in pieces."""
        kept = self.kept[start:stop]
        if isinstance(kept, range):
            return self.class_ids[self.source.labels(kept.start, kept.stop)].astype(np.int64)
        found = np.empty(len(kept), np.int64)
        done = 0
        while done < len(kept):
            first = int(kept[done])
            some = kept[done : int(np.searchsorted(kept, first + _CHUNK))]
            labels = self.source.labels(first, int(some[-1]) + 1)
            found[done : done + len(some)] = self.class_ids[labels[some - first]]
            done += len(some)
        return found


class MergedSource(Source):
    """Several data sets one after the other, of which some identities may be left out or renumbered."""

    def __init__(self, parts: list[Part], num_classes: int, facts: dict[str, Any]) -> None:
        self.parts, self.num_classes, self.facts = parts, num_classes, facts
        self.names = Names(num_classes, None)  # an identity may have another name in each part: `origins`
        self.sizes = tuple(len(part.kept) for part in parts)
        self._starts = [0, *accumulate(self.sizes)]
        digested: list[bytes | np.ndarray] = []
        for part in parts:
            digested += [part.source.fingerprint.encode(), part.class_ids]
            digested += [part.left_out] if len(part.left_out) else []
        self.fingerprint = digest_of(digested)

    def __len__(self) -> int:
        return self._starts[-1]

    def locate(self, index: int) -> tuple[Part, int]:
        """Find the part of an image, and its index there."""
        check_index(index, len(self))
        number = bisect_right(self._starts, index) - 1
        return self.parts[number], int(self.parts[number].kept[index - self._starts[number]])

    def labels(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        stop = len(self) if stop is None else stop
        starts = zip(self.parts, self._starts, strict=False)
        return np.concatenate([part.labels(max(start - at, 0), max(stop - at, 0)) for part, at in starts])

    def read(self, index: int) -> tuple[bytes, int]:
        part, at = self.locate(index)
        image, label = part.source.read(at)
        return image, int(part.class_ids[label])

    def embedding(self, index: int) -> np.ndarray:
        part, at = self.locate(index)
        return part.source.embedding(at)

    def name(self, index: int) -> str:
        part, at = self.locate(index)
        return part.source.name(at)

    def readahead(self, start: int, stop: int) -> None:
        """Hint as `Source.readahead` does; images left out between them are read too."""
        for part, at in zip(self.parts, self._starts, strict=False):
            kept = part.kept[max(start - at, 0) : max(stop - at, 0)]
            if len(kept):
                part.source.readahead(int(kept[0]), int(kept[-1]) + 1)

    def origins(self) -> Iterator[tuple[int, int, str]]:
        """Give (class id, number of the part, identity there), in ascending order; several where they were joined."""
        rows = [(part.class_ids[used], number, used) for number, part in enumerate(self.parts)
                for used in [np.flatnonzero(part.class_ids != LEFT_OUT)]]  # fmt: skip
        class_ids = np.concatenate([ids for ids, _, _ in rows])
        numbers = np.concatenate([np.full(len(ids), number) for ids, number, _ in rows])
        labels = np.concatenate([used for _, _, used in rows])
        for row in np.lexsort((labels, numbers, class_ids)).tolist():
            number = int(numbers[row])
            yield int(class_ids[row]), number, self.parts[number].source.names[int(labels[row])]


def merge(sources: Sequence[Source], configs: Sequence[PartConfig], min_images: int, shared: bool) -> MergedSource:
    """Make one source of several; `configs` say which of their identities are used under which ids."""
    names = [source.names for source in sources]
    counts = [images_of_classes(source) for source in sources]
    facts: list[dict[str, Any]] = [
        {"path": config.path, "images": len(source), "identities": int((count > 0).sum())}
        for source, config, count in zip(sources, configs, counts, strict=True)
    ]
    left_out = [
        _left_out(source, config, count) for source, config, count in zip(sources, configs, counts, strict=True)
    ]
    ids = _ids(configs, names, counts, facts)
    if not shared:
        _refuse_common(ids, configs)
    found, images = _images(ids, counts)
    enough = found[images >= min_images]
    parts = []
    for source, chosen, count, fact, images_out in zip(sources, ids, counts, facts, left_out, strict=True):
        class_ids = np.full(len(chosen), LEFT_OUT, dtype=np.int32)
        used = np.flatnonzero(np.isin(chosen, enough))
        class_ids[used] = np.searchsorted(enough, chosen[used])
        fact["too_few_images"] = int((chosen != LEFT_OUT).sum()) - len(used)
        fact["identities_used"], fact["images_used"] = len(used), int(count[used].sum())
        if not fact["images_used"]:
            raise DataError(f"{fact['path']}: no identity is left: {fact}")
        fact |= {"images_listed": len(images_out)} if len(images_out) else {}
        parts.append(Part(source, class_ids, _kept(source, class_ids, fact["images_used"], images_out), images_out))
    return MergedSource(parts, len(enough), {"parts": facts, "identities": len(enough)})


def _left_out(source: Source, config: PartConfig, counts: np.ndarray) -> np.ndarray:
    """Read the images (k,) that a part leaves out, and take them from the counts of its classes."""
    if not config.exclude_images:
        return NO_IMAGES
    images, labels = excluded_images(Path(config.exclude_images), source)
    counts -= np.bincount(labels, minlength=len(counts))
    return images


def _ids(
    configs: Sequence[PartConfig], names: list[Names], counts: list[np.ndarray], facts: list[dict[str, Any]]
) -> list[np.ndarray]:
    """Give each part's ids (C of the part,) int64 before renumbering; LEFT_OUT also where there is no image."""
    ids, free = [], 0  # free: the first number no part has used
    for config, name, count, fact in zip(configs, names, counts, facts, strict=True):
        present = count > 0
        out = ~present
        if config.exclude_identities:
            listed, found = excluded(Path(config.exclude_identities), name)
            out = listed & present
            fact |= {"exclude_list": found} if found else {}
        fact["excluded"] = int((out & present).sum())
        if config.label_map:
            new = mapped(Path(config.label_map), name, present & ~out)
        else:
            new = np.arange(len(count), dtype=np.int64)
        size = int(new.max(initial=-1)) + 1
        offset = free if config.label_offset is None else config.label_offset
        unused = out | ~present | (new == LEFT_OUT)
        fact["mapped_to_none"] = int((unused & present & ~out).sum())
        ids.append(np.where(unused, LEFT_OUT, new + offset))
        free = max(free, offset + size)
    return ids


def _refuse_common(ids: list[np.ndarray], configs: Sequence[PartConfig]) -> None:
    for number, mine in enumerate(ids):
        for other in range(number):
            common = np.intersect1d(mine[mine != LEFT_OUT], ids[other][ids[other] != LEFT_OUT])
            if len(common):
                pair = f"{configs[other].path} and {configs[number].path}"
                rule = "must be true where parts have ids in common"
                raise ConfigError(f"data.shared_identities: {rule}: {pair} have {len(common)}, the first {common[0]}")


def _images(ids: list[np.ndarray], counts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids (m,) in use, ascending, and the images of each over all parts."""
    used = [chosen != LEFT_OUT for chosen in ids]
    found, where = np.unique(np.concatenate([i[u] for i, u in zip(ids, used, strict=True)]), return_inverse=True)
    weights = np.concatenate([c[u] for c, u in zip(counts, used, strict=True)])
    return found, np.bincount(where, weights, minlength=len(found)).astype(np.int64)


def _kept(source: Source, class_ids: np.ndarray, count: int, left_out: np.ndarray) -> range | np.ndarray:
    """Return the images whose class is used and that are not left out; a range where they lie together."""
    if count == len(source):
        return range(count)
    kept = np.empty(count, dtype=np.int32 if len(source) < 1 << 31 else np.int64)
    filled = 0
    for start in range(0, len(source), _CHUNK):
        labels = source.labels(start, min(start + _CHUNK, len(source)))
        used = class_ids[labels] != LEFT_OUT
        first, end = np.searchsorted(left_out, (start, start + len(labels)))
        used[left_out[first:end] - start] = False
        some = start + np.flatnonzero(used)
        kept[filled : filled + len(some)] = some
        filled += len(some)
    return range(int(kept[0]), int(kept[-1]) + 1) if kept[-1] - kept[0] == count - 1 else kept
