"""The keys that there are: walked by dotted name, searched for the one that was meant, asked what they take."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from partialkd.config.base import Section
from partialkd.config.job import Config

LIKE = 0.7  # how alike (difflib's ratio) a key must be to be suggested


def sections_of(annotation: Any) -> list[type[Section]]:
    """The sections that an annotation allows: of `PhaseConfig | None`, one; of a choice by name, all."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_of(part)]


def fields_of(root: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of every key below a section, sections included; a list's keys are those of its items."""
    for name, field in root.model_fields.items():
        yield f"{prefix}{name}", field
        for section in sections_of(field.annotation):
            yield from fields_of(section, f"{prefix}{name}.")


def nearest(key: str) -> str | None:
    """The key that was probably meant by one that there is not; None where nothing is like it.

    Numbers in it (places in lists) are passed over. The last part decides; where it stands, and as part of what, next.
    """
    place, _, last = _without_numbers(key).rpartition(".")
    found: list[tuple[float, float, str]] = []
    for other in dict.fromkeys(one for one, _ in fields_of()):
        its_place, _, its_last = other.rpartition(".")
        here = its_place == place
        alike = _alike(last, its_last) + (0.1 if here else 0)
        if _alike(last, its_last) >= LIKE:
            found.append((alike, _alike(place, its_place), other))
    return max(found)[2] if found else None


def exists(key: str) -> bool:
    """Whether there is such a key, if only in one of the sections that could stand there."""
    return any(_without_numbers(key) == one for one, _ in fields_of())


def _without_numbers(key: str) -> str:
    return ".".join(part for part in key.split(".") if not part.isdecimal())


def _alike(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def wants(key: str) -> Literal["text", "texts"] | None:
    """Whether a key takes text, or a list of texts, and nothing else."""
    kinds = {_kind(field.annotation) for name, field in fields_of() if name == key}
    return kinds.pop() if len(kinds) == 1 else None


def _kind(annotation: Any) -> Literal["text", "texts"] | None:
    leaves = set(_leaves(annotation)) - {NoneType}
    if get_origin(annotation) is tuple:
        return "texts" if leaves == {str} else None
    return "text" if leaves == {str} else None


def _leaves(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal or not get_args(annotation):
        yield annotation
    else:
        parts = get_args(annotation)
        yield from (leaf for part in parts if isinstance(part, type) or get_args(part) for leaf in _leaves(part))
