"""What a resumed run may change and what its checkpoints must share, read off the marks of the fields.

A mark stands where the field is declared (partialkd.config.base): `Free`, `Length`, `Before`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo

from partialkd.config.base import Before, OnResume, Section
from partialkd.config.job import Config
from partialkd.config.training import PhaseConfig


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


def keys_marked(mark: OnResume, root: type[Section] = Config) -> tuple[str, ...]:
    """Dotted keys of the fields with this mark."""
    return tuple(dict.fromkeys(key for key, field in fields_of(root) if mark in field.metadata))


FREE = keys_marked(OnResume.FREE)


def covered(key: str, keys: tuple[str, ...]) -> bool:
    """Whether `key` is one of the keys or lies in one that is a section."""
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def phase_identity(phase: PhaseConfig) -> dict[str, Any]:
    """What a checkpoint of this phase must have been trained with: every field that is not marked otherwise."""
    left_out = tuple(key for mark in OnResume for key in keys_marked(mark, PhaseConfig))
    return _without(phase.model_dump(mode="json"), left_out)


def _without(tree: dict[str, Any], keys: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    kept = {name: value for name, value in tree.items() if f"{prefix}{name}" not in keys}
    return {
        name: _without(value, keys, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in kept.items()
    }


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries -> one with dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def before(section: type[Section]) -> dict[str, Any]:
    """Dotted key -> the value of runs from before the field existed."""
    found = ((key, mark) for key, field in fields_of(section) for mark in field.metadata if isinstance(mark, Before))
    return {key: mark.value for key, mark in found}


def identity_changes(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (saved, given) where a checkpoint's identity is not this phase's.

    What checkpoints of before did not record counts as equal, unless the field did not exist then (`Before`).
    """
    was = before(PhaseConfig) | flat(saved)
    return {key: (was[key], now) for key, now in flat(given).items() if key in was and was[key] != now}
