"""What a run's configuration says, and in what it differs from the defaults or from another run's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from partialkd.config.base import Section
from partialkd.config.resume import flat
from partialkd.report.page import Table
from partialkd.report.run_files import RunFiles

NOT_THERE = "—"
NAMES = ("run.name", "run.folder")


def settings_tables(run: RunFiles) -> tuple[Table | None, Table]:
    """-> what is not the default (None: the configuration is not one of this version), all of it."""
    if run.config is None:
        return None, Table("All settings", ["key", "value"], [[key, shown(x)] for key, x in flat(run.tree).items()])
    changed = [[key, shown(value), default] for key, value, default in _changed(run.config)]
    every = [[key, shown(value)] for key, value in flat(run.config.model_dump(mode="json")).items()]
    head = ["key", "value", "default"]
    return Table(f"{len(changed)} settings that are given", head, changed), Table("All settings", head[:2], every)


def _changed(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Dotted key, value and default of every value that is not the default's, or that has none."""
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, Section):
            yield from _changed(value, f"{key}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            for at, one in enumerate(value):
                yield from _changed(one, f"{key}.{at}.")
        elif field.is_required():
            yield key, _plain(value), "none: must be given"
        elif value != (default := field.get_default(call_default_factory=True)):
            yield key, _plain(value), shown(_plain(default))


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Section) else value


def shown(value: Any) -> str:
    """A value as TOML or JSON would have it."""
    return "not set" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def flat_settings(run: RunFiles) -> dict[str, str]:
    """Dotted key -> value as text, of the saved configuration with its defaults."""
    tree = run.config.model_dump(mode="json") if run.config else run.tree
    return {key: shown(value) for key, value in flat(tree).items()}


def differences(runs: Sequence[RunFiles], leaving_out: Sequence[str] = NAMES) -> dict[str, list[str]]:
    """Dotted key -> the value of each run, of the keys in which they are not all alike."""
    settings = [flat_settings(run) for run in runs]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    rows = {key: [one.get(key, NOT_THERE) for one in settings] for key in keys if key not in leaving_out}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}
