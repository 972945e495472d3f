"""What a look at a machine or a run found: good, doubtful or bad, in a line, with how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from partialkd.errors import PartialKDError, printable, text_of

Verdict = Literal["good", "doubtful", "bad"]
VERDICTS: tuple[Verdict, ...] = ("good", "doubtful", "bad")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `facts`: the figures behind the line, for programs."""

    name: str
    verdict: Verdict
    said: str
    mend: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    host: str = ""  # where; "" for what is of all of them


def judged(name: str, verdict: Verdict, said: str, mend: str = "", **facts: Any) -> Finding:
    """Make a finding; how to mend it is said only where there is something to mend."""
    return Finding(name, verdict, said, "" if verdict == "good" else mend, facts)


def attempted(name: str, look: Callable[[], Finding], mend: str = "") -> Finding:
    """Look, and make of an error that a user can act on a bad finding."""
    try:
        return look()
    except (PartialKDError, OSError) as error:
        return judged(name, "bad", text_of(error), mend)


def worst(findings: Iterable[Finding]) -> Verdict:
    """The worst of the verdicts."""
    return max((one.verdict for one in findings), key=VERDICTS.index, default="good")


def lines_of(findings: Sequence[Finding]) -> list[str]:
    """The findings as people read them; what is alike on several hosts is said once."""
    together: dict[tuple[str, str, str, str], list[str]] = {}
    for one in findings:
        together.setdefault((one.name, one.verdict, one.said, one.mend), []).append(one.host)
    hosts = {one.host for one in findings if one.host}
    width = max((len(one.name) for one in findings), default=0)
    lines = []
    for (name, verdict, said, mend), places in together.items():
        few = sorted(set(places) - {""})
        where = f" [{', '.join(map(printable, few))}]" if few and len(hosts) > 1 and len(few) < len(hosts) else ""
        lines += [f"{verdict:<8}  {name:<{width}}  {line}" for line in [f"{printable(said)}{where}"]]
        lines += [f"{'':8}  {'':{width}}  -> {mend}"] if mend else []
    return lines
