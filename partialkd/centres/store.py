"""Keep one rank's class centres: unit rows, their lengths, which have been seen, and their optimiser's moments.

A centre w is kept as its direction and its length, w = length * unit. Cosines need the direction only, so a
sweep over the rows reads them as they lie, without a normalisation; an update reads length * unit, moves it
and splits it again. Shapes: unit (R, D) float32, bfloat16 or int8, length (R,) float32, seen (R,) bool, moments
(R, D) or (R,) float32 or bfloat16; R = len(shard), possibly 0.

int8 rows have a scale each, (R,) float32: direction = scale * unit with scale = 1 / |unit|, so that what cosines are
taken with is of unit length however it was rounded, and length * scale * unit is the rounded centre. bfloat16 rows are
used as they lie: their length is off by about 2^-9 / sqrt(D).

Writes round to nearest; within `rounding` stochastically (partialkd.centres.rounding), for whatever moves by small
steps.

Random centres depend on (seed, class id) alone: not on the rank, the world size or the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from partialkd.centres.device_io import to_host
from partialkd.centres.rounding import Draw, to_bfloat16, to_int8

INITIAL_STD = 0.01  # of random centres, as AdaDistill and arcface_torch publish
TINY = 1e-12  # a shorter centre has no direction
_BLOCK = 1024  # class ids that share one generator
ROUNDED_AT_ONCE = 1 << 19  # numbers: what rounding needs beside the rows

MOMENT = "moment."  # before the name of a moment in `state()`
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


@dataclass
class CentreStore:
    """The rows `shard` of `num_classes` centres."""

    shard: range
    num_classes: int
    unit: Tensor
    length: Tensor
    seen: Tensor
    skip_unseen: bool = False  # centres not seen yet are no negatives: a rule, the same for the store's whole life
    moments: dict[str, Tensor] = field(default_factory=dict)
    scale: Tensor | None = None  # of int8 rows
    draw: Draw | None = None  # random bits of writes; None: to nearest
    ids: Tensor | None = None  # class ids of the rows (R,) int64, where they are not those of `shard` in order
    _all_seen: bool = field(default=False, init=False)  # known for sure
    _asked: tuple[Tensor, Callable[[], bool]] | None = field(default=None, init=False)  # the device, whether all are

    @classmethod
    def empty(
        cls,
        shard: range,
        num_classes: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        skip_unseen: bool = False,
    ) -> CentreStore:
        """Make a store of zero centres, none seen."""
        rows = len(shard)
        return cls(
            shard=shard,
            num_classes=num_classes,
            unit=torch.zeros(rows, dim, dtype=dtype, device=device),
            length=torch.zeros(rows, dtype=_length_dtype(dtype), device=device),
            seen=torch.zeros(rows, dtype=torch.bool, device=device),
            scale=torch.ones(rows, device=device) if dtype == torch.int8 else None,
            skip_unseen=skip_unseen,
        )

    @classmethod
    def random(
        cls,
        shard: range,
        num_classes: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        skip_unseen: bool = False,
    ) -> CentreStore:
        """Make a store of centres drawn from N(0, 0.01^2), none seen."""
        store = cls.empty(shard, num_classes, dim, dtype, device, skip_unseen)
        for ids, block in random_blocks(shard, dim, seed):
            rows = torch.arange(ids.start - shard.start, ids.stop - shard.start, device=device)
            store.write(rows, block.to(device))
        return store

    @property
    def dim(self) -> int:
        return self.unit.shape[1]

    @property
    def device(self) -> torch.device:
        return self.unit.device

    def directions(self, rows: Tensor | slice) -> Tensor:
        """Unit centres (n, D) of these rows in the precision of the lengths; of a slice, a view where it is theirs."""
        unit = self.unit[rows].to(self.length.dtype)
        return unit if self.scale is None else unit.mul_(self.scale[rows, None])

    def read(self, rows: Tensor | slice) -> Tensor:
        """Centres (n, D) of these rows, unnormalised, in the precision of the lengths (float32)."""
        return self.directions(rows) * self.length[rows, None]

    def fill(self, rows: Tensor | slice, centres: Tensor) -> None:
        """Replace these rows by centres (n, D), whose memory may be reused, and count them as seen."""
        self.replace(rows, centres)
        self.seen[rows] = True

    def write(self, rows: Tensor | slice, centres: Tensor) -> None:
        """Replace these rows by centres (n, D)."""
        self.replace(rows, centres.clone())

    def replace(self, rows: Tensor | slice, centres: Tensor) -> None:
        """Replace these rows by centres (n, D), whose memory is reused and may be the rows' own."""
        if self.scale is not None:
            for part, values in self._blocks(rows, centres):
                words = self._words(part, purpose=0)
                self.unit[part], self.scale[part], self.length[part] = to_int8(values, words)
            return
        length = centres.norm(dim=1)
        self.put(self.unit, rows, centres.div_(length.clamp_min(TINY)[:, None]), purpose=0)
        put_rows(self.length, rows, length)

    def add_moment(self, name: str, dtype: torch.dtype | None = None, per_row: bool = False) -> None:
        """Have room for an optimiser's moment, zeros: one number per row, or (R, D); `dtype` None: that of lengths."""
        self.moments[name] = torch.zeros_like(self.length if per_row else self.unit, dtype=dtype or self.length.dtype)

    def pin_memory(self, name: str) -> None:
        """Move this tensor of `state()` to page-locked memory."""
        if name.startswith(MOMENT):
            key = name.removeprefix(MOMENT)
            self.moments[key] = self.moments[key].pin_memory()
        else:
            setattr(self, name, self.tensors()[name].pin_memory())

    def put(self, target: Tensor, rows: Tensor | slice, values: Tensor, purpose: int) -> None:
        """Set target[rows] = values (n, ...), rounded where it is bfloat16. `purpose` tells its random bits apart."""
        if target.dtype != torch.bfloat16 or self.draw is None:
            put_rows(target, rows, values)
            return
        for part, block in self._blocks(rows, values):
            target[part] = to_bfloat16(block, self._words(part, purpose))

    @contextmanager
    def rounding(self, draw: Draw) -> Iterator[None]:
        """Round what is written stochastically."""
        self.draw = draw
        try:
            yield
        finally:
            self.draw = None

    def renormalise(self, rows: Tensor) -> None:
        """Bring these centres to length one."""
        self.length[rows] = 1.0

    @contextmanager
    def only_if(self, condition: Tensor, rows: Tensor) -> Iterator[None]:
        """Undo what is written to these rows within, unless `condition` () bool, which the host does not look at."""
        before = {name: value[rows] for name, value in self.state().items()}
        yield
        for name, value in self.state().items():
            value[rows] = torch.where(condition, value[rows], before[name])

    @property
    def everything_seen(self) -> bool:
        """Whether every row may be a negative.

        Asks the device until no centre is missing any more, and on CUDA does not wait for the answer: a call that finds
        one is told the truth of an earlier call.
        """
        if self.skip_unseen and not self._all_seen:
            answer, there = self._asked = self._asked or to_host(self.seen.all())
            if there():
                self._all_seen, self._asked = bool(answer), None
        return not self.skip_unseen or self._all_seen

    def kept(self, rows: Tensor) -> dict[str, Tensor]:
        """A copy of these centres (n, ...), for `put_back`."""
        return {name: tensor[rows] for name, tensor in self.tensors().items()}

    def put_back(self, rows: Tensor, kept: dict[str, Tensor]) -> None:
        """Make these rows again what they were at `kept`; some may be unseen again."""
        self._all_seen, self._asked = False, None
        for name, tensor in self.tensors().items():
            tensor[rows] = kept[name]

    def tensors(self) -> dict[str, Tensor]:
        """Give the tensors of the centres, without their optimiser's moments; leading dimension R; not copies."""
        own = {"unit": self.unit, "length": self.length, "seen": self.seen}
        return own if self.scale is None else {**own, "scale": self.scale}

    def state(self) -> dict[str, Tensor]:
        """Give every tensor, leading dimension R, for a checkpoint; not copies."""
        return {**self.tensors(), **{MOMENT + key: value for key, value in self.moments.items()}}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over tensors of this shard, moments included. What is kept in another precision is converted."""
        self._all_seen, self._asked = False, None
        if state["unit"].dtype == self.unit.dtype:
            for name, own in self.tensors().items():
                own.copy_(state[name])
        else:  # split again, since a row that was rounded is not quite of unit length
            rows = max(1, ROUNDED_AT_ONCE // self.dim)
            for start in range(0, len(self.shard), rows):
                part = slice(start, min(start + rows, len(self.shard)))
                self.replace(part, saved_centres(state, part).to(self.length))
            self.seen.copy_(state["seen"])
        for key, value in state.items():
            if key.startswith(MOMENT):
                name = key.removeprefix(MOMENT)
                if name in self.moments:
                    self.moments[name].copy_(value)
                else:
                    self.moments[name] = value.to(self.device)

    def take_rows(self, rows: Tensor, state: dict[str, Tensor]) -> None:
        """Take over tensors (n, ...) of other centres for these rows; bit for bit in the same precision."""
        self._all_seen, self._asked = False, None
        if state["unit"].dtype == self.unit.dtype:
            for name, own in self.tensors().items():
                own[rows] = state[name]
        else:
            self.replace(rows, saved_centres(state).to(self.length))
            self.seen[rows] = state["seen"]

    def _blocks(self, rows: Tensor | slice, values: Tensor) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Cut (rows, their values) into blocks of ROUNDED_AT_ONCE numbers."""
        count = max(1, ROUNDED_AT_ONCE // max(1, values[:1].numel()))
        first = 0 if isinstance(rows, Tensor) else rows.indices(len(self.shard))[0]
        for start in range(0, len(values), count):
            stop = min(start + count, len(values))
            part = rows[start:stop] if isinstance(rows, Tensor) else slice(first + start, first + stop)
            yield part, values[start:stop]

    def _words(self, rows: Tensor | slice, purpose: int) -> Tensor | None:
        if self.draw is None:
            return None
        if isinstance(rows, slice):
            rows = torch.arange(rows.start, rows.stop, device=self.device)
        ids = rows + self.shard.start if self.ids is None else self.ids[rows]
        return self.draw.words(ids, self.dim, purpose)


def saved_centres(state: dict[str, Tensor], rows: slice = slice(None)) -> Tensor:
    """Centres (n, D) of saved tensors of any precision, unnormalised, in that of their lengths."""
    factor = state["length"][rows]
    if "scale" in state:
        factor = factor * state["scale"][rows]
    return state["unit"][rows].to(factor.dtype) * factor[:, None]


def put_rows(tensor: Tensor, rows: Tensor | slice, values: Tensor) -> None:
    """Assign tensor[rows] = values, without a copy where `values` is that view already."""
    if not (isinstance(rows, slice) and values.dtype == tensor.dtype and values.data_ptr() == tensor[rows].data_ptr()):
        tensor[rows] = values.to(tensor.dtype)


def random_blocks(shard: range, dim: int, seed: int) -> Iterator[tuple[range, Tensor]]:
    """Draw (class ids, their random centres (n, D) float32 on the CPU), block by block over the shard.

    Blocks are cut at multiples of a fixed number of global class ids, each with a generator of its own, so
    that a shard draws the same centres wherever it begins.
    """
    if not shard:
        return
    for block in range(shard.start // _BLOCK, (shard.stop - 1) // _BLOCK + 1):
        generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + block * 0x85EBCA77 + 1) % 2**63)
        rows = torch.randn(_BLOCK, dim, generator=generator) * INITIAL_STD
        first = block * _BLOCK
        ids = range(max(shard.start, first), min(shard.stop, first + _BLOCK))
        yield ids, rows[ids.start - first : ids.stop - first]


def _length_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
