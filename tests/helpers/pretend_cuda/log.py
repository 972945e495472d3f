"""What happened on the pretend device that a GPU would have waited for, or that NCCL would have refused."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from torch import Tensor

import partialkd

PACKAGE = str(Path(partialkd.__file__).parent) + "/"
ROOT = str(Path(__file__).parents[3]) + "/"


class Log:
    """Counts by what and where. `waits`: of the host; `refused`: collectives; `copies`: from the host, by kind."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.collectives: Counter[str] = Counter()
        self.pinned: set[int] = set()  # addresses of storages that were made page-locked
        self.forbids = 0  # torch.cuda.set_sync_debug_mode: 2 raises

    def wait(self, what: str) -> None:
        """Note that the host would wait; an error where torch's detector of that is on."""
        self.waits[f"{what} at {place()}"] += 1
        if self.forbids == 2:
            raise RuntimeError(f"called a synchronizing CUDA operation: {what}")

    def is_pinned(self, x: Tensor) -> bool:
        """Whether a CPU tensor lies in page-locked memory."""
        return x.untyped_storage().data_ptr() in self.pinned

    def pin(self, x: Tensor) -> Tensor:
        """Mark the memory of a CPU tensor, for as long as the process lives."""
        _KEPT.append(x)  # else its address might be another's, which is not page-locked
        self.pinned.add(x.untyped_storage().data_ptr())
        return x

    def taken(self) -> dict[str, dict[str, int]]:
        """Give what happened since the last call, by kind."""
        names = ("waits", "refused", "copies", "collectives")
        noted = {name: dict(getattr(self, name)) for name in names}
        self.clear()
        return noted

    def clear(self) -> None:
        """Forget what happened; what is page-locked stays so."""
        for counts in (self.waits, self.refused, self.copies, self.collectives):
            counts.clear()


_KEPT: list[Tensor] = []
LOG = Log()


def place() -> str:
    """Say where in the package, else in a test or benchmark, this is called from: file and function."""
    frame, elsewhere = sys._getframe(1), ""
    while frame is not None:
        name, function = frame.f_code.co_filename, frame.f_code.co_name
        if name.startswith(PACKAGE):
            return f"{name.removeprefix(PACKAGE)}:{function}"
        if name.startswith(ROOT) and "/pretend_cuda/" not in name and "/.venv" not in name:
            elsewhere = elsewhere or f"{name.removeprefix(ROOT)}:{function}"
        frame = frame.f_back  # type: ignore[assignment]
    return elsewhere or "elsewhere"
