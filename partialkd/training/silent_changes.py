"""Numbers that must stay what they are, or be equal: a teacher's, a shard's, the ranks' copies of the student.

Checksums are sums of the bits (int64, exact in any order), so one changed bit is seen, whatever its value; two changes
that cancel are not. All are found on the device; what a check reads from it is a few numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from partialkd.centres import CentreStore
from partialkd.centres.broken_rows import centre_problem, floating
from partialkd.storage.finite import first_few
from partialkd.world.world import World

SUMMED_AT_ONCE = 1 << 20
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_sums(tensors: Iterable[Tensor]) -> Tensor:
    """Sum the bits of each tensor -> (n,) int64."""
    sums = [_sum(x.detach().view(_WORDS[x.element_size()]), torch.int64) for x in tensors]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64)


def _sum(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum in another type. On the CPU torch first makes a copy in that type: of no more than SUMMED_AT_ONCE numbers."""
    if x.is_cuda or x.dtype == dtype or x.numel() <= SUMMED_AT_ONCE:
        return x.sum(dtype=dtype)
    rows = max(1, SUMMED_AT_ONCE // max(1, x[:1].numel()))
    return torch.stack([part.sum(dtype=dtype) for part in x.split(rows)]).sum()


class Frozen:
    """A network whose parameters and buffers must not change from here on."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._before = self._sums()

    def problem(self) -> str | None:
        """Name what changed, or None."""
        now = self._sums()
        changed = [name for name in self._before if now.get(name) != self._before[name]]
        return f"the teacher changed while the student was trained: {first_few(changed)}" if changed else None

    def _sums(self) -> dict[str, int]:
        values = dict([*self.network.named_parameters(), *self.network.named_buffers()])
        return dict(zip(values, bit_sums(values.values()).tolist(), strict=True))


class CentreSweep:
    """Looks at a slice of the shard a step, so that in `steps` steps every row was looked at.

    Where steps work on a window of the shard, at the window as they left it: no other row has changed.
    """

    def __init__(self, store: CentreStore, steps: int) -> None:
        self.store = store
        self._rows = -(-len(store.shard) // steps)
        self._next = 0
        self._sums: dict[torch.device, Tensor] = {}  # NaN or infinity once a row was

    def step(self, working: CentreStore) -> None:
        """Look at a slice of what an optimiser step worked on, after it; does not wait for the device."""
        rows = slice(None)
        if working is self.store:
            rows = slice(self._next, self._next + self._rows)
            self._next = rows.stop if rows.stop < len(self.store.shard) else 0
        self._add(working, rows)

    def problem(self, everything: bool) -> str | None:
        """Name what is wrong in what was looked at since, or in everything; the store must be up to date."""
        if everything:
            self._add(self.store, slice(None))
        broken = not all(bool(total.isfinite()) for total in self._sums.values())
        self._sums.clear()
        return centre_problem(self.store) if broken else None

    def _add(self, store: CentreStore, rows: slice) -> None:
        total = self._sums.setdefault(store.device, torch.zeros((), device=store.device))
        for value in floating(store):
            total += _sum(value[rows], torch.float32)


def replica_problem(network: nn.Module, world: World) -> str | None:
    """Collective; the same on every rank. Which ranks' parameters are not the others', bit for bit."""
    names = [name for name, _ in network.named_parameters()]
    mine = bit_sums(network.parameters())
    sums = [tuple(row) for row in world.all_gather(mine[None]).tolist()]
    usual, ranks = Counter(sums).most_common(1)[0]
    if ranks == world.size:
        return None
    first = next(name for name, column in zip(names, zip(*sums, strict=True), strict=True) if len(set(column)) > 1)
    if 2 * ranks > world.size:
        who = f"rank {', '.join(str(r) for r, row in enumerate(sums) if row != usual)} from the other {ranks}"
    else:
        who = f"{world.size} ranks, no {world.size // 2 + 1} of them alike"
    return f"the student's parameters differ between ranks: {who}, first in {first}"
