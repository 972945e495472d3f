"""How far a pass over many things has come: a bar on a terminal, elsewhere a line now and then.

`with Pass("drawing faces", 4800, "images") as drawn:` and `drawn.add()`, or `for item in counted(items, ...)`. A pass
of less than `SHORT_S` says nothing; a longer one says at its end how long it took. A thread of its own looks at the
count, so that a pass that hangs shows that too, and adding costs nothing. Where nobody called `messages.begin`, and on
ranks but 0, there is no bar.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from partialkd.world.messages import Screen

SHORT_S = 1.0
LINE_S = 10.0  # between lines where there is no terminal
_REDRAW_S = 0.2
_BAR = range(10, 41)  # characters of a bar

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Pass:
    """Count how far a pass is, and show it. `total`: None where nobody knows; `done`: what others did before."""

    def __init__(self, doing: str, total: int | None = None, unit: str = "", done: int = 0) -> None:
        self.doing, self.total, self.unit = doing, total, unit
        self.done, self._first = done, done
        self.note = ""  # what else there is to say
        self._began = self._said = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="partialkd-pass", daemon=True)

    def add(self, count: int = 1) -> None:
        self.done += count

    def leave_out(self, seconds: float) -> None:
        """Do not count these seconds when the time left is told: something else was done in them."""
        self._began += seconds

    def told(self) -> None:
        """Note that somebody else has just said how far this pass is: no line is needed for a while."""
        self._said = time.monotonic()

    def seconds_left(self) -> float | None:
        """Estimate the time left at the mean pace so far; None where it cannot be known."""
        done = self.done - self._first
        if self.total is None or done <= 0:
            return None
        return (time.monotonic() - self._began) / done * max(0, self.total - self.done)

    def __enter__(self) -> Pass:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        Screen.show("")
        seconds = time.monotonic() - self._began
        if kind is None and seconds >= SHORT_S:
            _log.info(f"{self.doing}: {self._summary(seconds)}")

    def _tell(self) -> None:
        while not self._over.wait(_REDRAW_S):
            now = time.monotonic()
            if now - self._began < SHORT_S:
                continue
            if Screen.stream() is not None:
                Screen.show(fitted(self._pieces(), self._share(), Screen.width()))
            elif now - self._said >= LINE_S:
                self._said = now
                _log.info(" ".join(piece for piece in self._pieces() if piece))

    def _pieces(self) -> list[str]:
        """What to say, the most important first."""
        elapsed, left = time.monotonic() - self._began, self.seconds_left()
        count = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}" if self.unit else ""
        rate = f"{(self.done - self._first) / elapsed:.3g} {self.unit}/s" if self.unit else ""
        time_left = f"left {hours(left)}" if left is not None else f"for {hours(elapsed)}"
        return [" ".join(filter(None, [self.doing, count])), time_left, rate, self.note]

    def _share(self) -> float | None:
        return min(1.0, self.done / self.total) if self.total else None

    def _summary(self, seconds: float) -> str:
        done = self.done - self._first
        if not self.unit:
            return f"took {hours(seconds)}"
        return f"{done} {self.unit} in {hours(seconds)}, {done / seconds:.3g} {self.unit}/s"


def counted(
    items: Iterable[T],
    doing: str,
    total: int | None,
    unit: str,
    size: Callable[[T], int] = lambda _: 1,
) -> Iterator[T]:
    """Yield the items and count each when the next one is asked for; `size`: how many units one item is."""
    with Pass(doing, total, unit) as going:
        for item in items:
            yield item
            going.add(size(item))


def of_rank(doing: str, rank: int, size: int) -> str:
    """What is done, and whose share of it is counted, where it is shared out."""
    return doing if size == 1 else f"{doing} (rank {rank} of {size})"


def fitted(pieces: Sequence[str], share: float | None, width: int) -> str:
    """Put the first piece, a bar, and as many others as fit beside them on a line of `width` characters."""
    first, *others = pieces
    line, room = first[:width], _BAR.start + 3  # a bar has brackets, and a space before it
    shown = share is not None and len(line) + room <= width
    space = width - len(line) - (room if shown else 0)
    kept = []
    for piece in filter(None, others):
        if len(piece) + 1 > space:
            break
        kept.append(piece)
        space -= len(piece) + 1
    bar = []
    if share is not None and shown:
        size = min(_BAR.stop - 1, _BAR.start + space)
        full = round(share * size)
        bar = [f"[{'#' * full}{'-' * (size - full)}]"]
    return " ".join([line, *bar, *kept])


def hours(seconds: float) -> str:
    """Write seconds as hours, minutes and seconds: 3725 as "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
