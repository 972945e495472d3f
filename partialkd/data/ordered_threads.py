"""Run one job for many items on threads, giving the results in the order of the items.

The one thread pool of the data package: loaders, scans of record files, packing, and kept embeddings all use it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    job: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int | None = None
) -> Generator[tuple[Item, Result], None, None]:
    """Yield (item, job(item)) in the order of `items`; threads run at most `ahead` items ahead of the reader.

    Without `ahead` the distance is the number of threads. An exception of `job` is raised in the place of its item.
    `items` is read by the calling thread only. The threads end with the generator: at its end, when it raises, when
    it is closed or dropped.
    """
    distance = workers if ahead is None else ahead
    pending: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="partialkd-data")
    try:
        for item in items:
            pending.append((item, pool.submit(job, item)))
            if len(pending) > distance:
                yield pending[0][0], pending.popleft()[1].result()
        while pending:
            yield pending[0][0], pending.popleft()[1].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
