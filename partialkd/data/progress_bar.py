"""Show how far a long pass over many items has come, apart from the work itself."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def shown(items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
    """Hand the items on one by one, counting them in a progress bar on stderr."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        bar = progress.add_task(title, total=total)
        for item in items:
            yield item
            progress.advance(bar)
