"""Run a job on threads for many items, giving the results in the order of the items."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    job: Callable[[Item], Result], todo: Iterable[Item], workers: int
) -> Generator[tuple[Item, Result], None, None]:
    """(item, job(item)) in the order of `todo`, computed by threads at most `workers` + 1 items ahead.

    An exception of `job` is raised in the place of its item. `todo` is read by the calling thread only.
    """
    pending: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="partialkd-loader")
    try:
        for item in todo:
            pending.append((item, pool.submit(job, item)))
            if len(pending) > workers:
                yield pending[0][0], pending.popleft()[1].result()
        while pending:
            yield pending[0][0], pending.popleft()[1].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_order(job: Callable[[Item], Result], todo: Iterable[Item], workers: int, title: str) -> Iterator[Result]:
    """Results of `job` in the order of `todo`, computed by threads a bounded distance ahead, with a progress bar."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    todo = list(todo)
    with ThreadPoolExecutor(workers) as pool, Progress(*columns, console=Console(file=sys.stderr)) as progress:
        bar = progress.add_task(title, total=len(todo))
        ahead: deque = deque()
        try:
            for item in todo:
                ahead.append(pool.submit(job, item))
                if len(ahead) >= 32 * workers:
                    yield ahead.popleft().result()
                    progress.advance(bar)
            while ahead:
                yield ahead.popleft().result()
                progress.advance(bar)
        finally:
            for future in ahead:
                future.cancel()
