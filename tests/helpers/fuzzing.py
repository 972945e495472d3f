"""Reading under suspicion: changes of files, and limits of time and memory while a reader looks at the result."""

from __future__ import annotations

import signal
import tracemalloc
from collections.abc import Callable
from types import FrameType

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from partialkd.data.formats.recordio import MAGIC
from partialkd.errors import DataError

Change = tuple[str, float, bytes]  # kind, place as a share of the length, bytes
MOST = 16 << 20  # bytes that a reader may hold while it reads a file of some kilobytes
HANGS_S = 30
bounded = settings(
    max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
WORDS = st.sampled_from(
    [MAGIC, 0, 1, 2, 3, 9, 1 << 29, 2 << 29, 3 << 29, (1 << 29) - 1, (1 << 31) - 1, (1 << 32) - 1, 0x7FC00000]
)
# Changes of a file: put words over its bytes, cut something out, put something in. Places are shares of its length.
PLACES = st.floats(0, 1, exclude_max=True)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("over"), PLACES, WORDS.map(lambda word: word.to_bytes(4, "little"))),
        st.tuples(st.just("over"), PLACES, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("out"), PLACES, st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("in"), PLACES, st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("end"), PLACES, st.just(b"")),
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes: list[Change]) -> bytes:
    for kind, place, data in changes:
        at = int(place * len(content))
        after = {"over": at + len(data), "out": at + len(data), "in": at, "end": len(content)}[kind]
        content = content[:at] + (data if kind in ("over", "in") else b"") + content[after:]
    return content


class Hang(BaseException):
    """No Exception: nothing that is under test may catch it."""


def _hang(_: int, __: FrameType | None) -> None:
    raise Hang(f"still reading after {HANGS_S} s")


def read_or_refuse(read: Callable[[], object]) -> None:
    """Any exception but DataError comes out and fails the test."""
    said, before = "", signal.signal(signal.SIGALRM, _hang)
    tracemalloc.start()
    signal.alarm(HANGS_S)
    try:
        read()
    except DataError as error:
        said = str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(said) < 1000
    assert peak < MOST
