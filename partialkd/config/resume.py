"""What a resumed run may change and what its checkpoints must share, read off the marks of the fields.

A mark stands where the field is declared (partialkd.config.base): `Free`, `Length`, `Before`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from partialkd.config.base import Before, OnResume, Section
from partialkd.config.job import Config
from partialkd.config.keys import fields_of
from partialkd.config.load import parse_config, read_tree
from partialkd.config.training import PhaseConfig
from partialkd.errors import ConfigError

S = TypeVar("S", bound=Section)


def keys_marked(mark: OnResume, root: type[Section] = Config) -> tuple[str, ...]:
    """Dotted keys of the fields with this mark."""
    return tuple(dict.fromkeys(key for key, field in fields_of(root) if mark in field.metadata))


FREE = keys_marked(OnResume.FREE)
LENGTHS = keys_marked(OnResume.LENGTH)


def covered(key: str, keys: tuple[str, ...]) -> bool:
    """Whether `key` is one of the keys or lies in one that is a section."""
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def phase_identity(phase: PhaseConfig) -> dict[str, Any]:
    """What a checkpoint of this phase must have been trained with: every field that is not marked otherwise."""
    left_out = tuple(key for mark in OnResume for key in keys_marked(mark, PhaseConfig))
    return _without(phase.model_dump(mode="json"), left_out)


def phase_length(phase: PhaseConfig) -> dict[str, Any]:
    """How long a phase is: what may grow where that is asked for."""
    keys = keys_marked(OnResume.LENGTH, PhaseConfig)
    return {key: value for key, value in flat(phase.model_dump(mode="json")).items() if key in keys}


def _without(tree: dict[str, Any], keys: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    kept = {name: value for name, value in tree.items() if f"{prefix}{name}" not in keys}
    return {
        name: _without(value, keys, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in kept.items()
    }


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries -> one with dotted keys.

    A list is one value, but where a key of its sections may change: there each key has the list of its values.
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        sections = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
        if sections and any(free.startswith(f"{prefix}{key}.") for free in FREE):
            items = [flat(item) for item in value]
            value = {name: [item.get(name) for item in items] for name in dict.fromkeys(n for i in items for n in i)}
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def before(section: type[Section]) -> dict[str, Any]:
    """Dotted key -> the value of runs from before the field existed."""
    found = ((key, mark) for key, field in fields_of(section) for mark in field.metadata if isinstance(mark, Before))
    return {key: list(mark.value) if isinstance(mark.value, tuple) else mark.value for key, mark in found}


def identity_changes(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (saved, given) where a checkpoint's identity is not this phase's.

    What checkpoints of before did not record counts as equal, unless the field did not exist then (`Before`). Where one
    has a section and the other a value (a margin may be either), that is a change.
    """
    was, now = before(PhaseConfig) | flat(saved), flat(given)
    changes = {key: (was[key], value) for key, value in now.items() if key in was and was[key] != value}
    for key in now.keys() - was.keys():
        changes |= {one: (was[one], "a section") for one in was if key.startswith(f"{one}.")}
    for key in was.keys() - now.keys():
        changes |= {one: ("a section", now[one]) for one in now if key.startswith(f"{one}.")}
    return changes


def check_same_run(config: Config, path: Path, extend: bool = False) -> list[str]:
    """ConfigError naming the keys in which `config` differs from the saved one, other than those that may.

    extend: a phase may be longer than it was -> the keys that make it so.
    """
    tree = saved_tree(path)
    with _own_copy():
        was = as_begun(parse_config(tree, str(path)), tree)
    saved, given = (flat(one.model_dump(mode="json")) for one in (was, config))
    keys = [key for key in sorted(saved.keys() | given.keys()) if saved.get(key) != given.get(key)]
    changed = [key for key in keys if not covered(key, FREE)]
    longer = [key for key in changed if covered(key, LENGTHS) and _longer(saved.get(key), given.get(key))]
    if changed and not (extend and longer == changed):
        changes = "; ".join(f"{key}: must be {saved.get(key)!r}, got {given.get(key)!r}" for key in changed)
        rule = " (with --extend a phase may be made longer)" if longer == changed else ""
        raise ConfigError(f"--resume goes on with the run of {path} only: {changes}{rule}")
    return longer


def _longer(was: float | None, now: float | None) -> bool:
    """Whether a limit was raised, or lifted (None)."""
    return was is not None and (now is None or now > was)


def saved_tree(path: Path) -> dict[str, Any]:
    """The saved configuration of a run, as a nested dictionary."""
    with _own_copy():
        tree = read_tree(path)
        if not tree:
            raise ConfigError(f"{path}: is empty")
        return tree


@contextmanager
def _own_copy() -> Iterator[None]:
    """Say of an error what the file is, and what to do."""
    try:
        yield
    except ConfigError as error:
        rule = "without which it cannot be gone on with: put it back, or start anew under another run.name"
        *lines, last = str(error).split("\n")
        raise ConfigError(*lines, f"{last}. This is the run's own copy of its configuration, {rule}") from error


def as_begun(section: S, saved: dict[str, Any]) -> S:
    """The configuration with which the run of a saved one goes on.

    What is new since it was begun, and not given now, is as it was then (`Before`).
    """
    updates: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value, was = getattr(section, name), saved.get(name)
        marks = [mark.value for mark in field.metadata if isinstance(mark, Before)]
        if isinstance(value, Section) and isinstance(was, dict):
            updates[name] = as_begun(value, was)
        elif marks and name not in section.model_fields_set and saved.get(name, marks[0]) == marks[0]:
            updates[name] = marks[0]
    return section.model_copy(update=updates)
