"""Cells of tables: shares in per cent with their intervals, a dash or a star where impostors are too few."""

from __future__ import annotations

from collections.abc import Sequence

from partialkd.evaluate.rates import too_few


def between(interval: Sequence[float | None] | None, times: int = 100, digits: int = 1) -> str:
    """Interval in brackets behind a number; an end without a limit is left empty."""
    if interval is None:
        return ""
    low, high = ("" if end is None else f"{times * end:.{digits}f}" for end in interval)
    return f" [{low}, {high}]"


def share_cell(share: float, interval: Sequence[float | None] | None) -> str:
    """Share in per cent, with its interval."""
    return f"{100 * share:.2f}{between(interval)}"


def rate_cell(share: float | None, interval: Sequence[float | None] | None, far: float, impostors: int) -> str:
    """Share at a false accept rate: a dash below 1 / far impostors, a star below 10 / far."""
    if share is None or too_few(far, impostors):
        return "-"
    return f"{100 * share:.2f}{star(far, impostors)}{between(interval)}"


def star(far: float, impostors: int) -> str:
    """Mark what fewer than 10 / far impostors say."""
    return "*" if too_few(far, impostors // 10) else ""
