"""Configuration files: TOML read strictly, dotted overrides, the resolved configuration written beside the results.

Errors: `ConfigError`, one line a problem, with the dotted key, the rule and the value, e.g.
`student.centres.sample_rate: must be less than or equal to 1, got 1.5`. Nothing is inherited between files; what
`save_config` writes can be used as a configuration file again.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from partialkd.config import Config
from partialkd.config.resume import FREE, covered, flat
from partialkd.errors import ConfigError
from partialkd.storage.atomic_files import write_text


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, apply `section.key=value` overrides (TOML values, else text), validate."""
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: values are nested too deep") from error
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, origin=str(path))


def parse_config(tree: dict[str, Any], origin: str = "config") -> Config:
    """Validate a nested dictionary."""
    try:
        return Config.model_validate(_tuples(tree))
    except ValidationError as error:
        lines = [describe(problem, tree) for problem in error.errors()]
        raise ConfigError(*(f"{origin}: {line}" for line in lines)) from None


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as TOML that `load_config` reads back to an equal one."""
    write_text(path, tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r}: must be section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = tree
    for depth, part in enumerate(parts[:-1]):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(parts[: depth + 1])} is a value, not a section")
    table[parts[-1]] = value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def check_same_run(config: Config, path: Path) -> None:
    """ConfigError naming the keys in which `config` differs from the saved one, other than those that may."""
    saved, given = (flat(c.model_dump(mode="json")) for c in (load_config(path), config))
    keys = [key for key in sorted(saved.keys() | given.keys()) if saved.get(key) != given.get(key)]
    changed = [key for key in keys if not covered(key, FREE)]
    if changed:
        changes = "; ".join(f"{key}: must be {saved.get(key)!r}, got {given.get(key)!r}" for key in changed)
        raise ConfigError(f"--resume goes on with the run of {path} only: {changes}")


FIXED = {"extra_forbidden": "unknown key", "missing": "required key is missing"}
KINDS = {"model_type": "a section", "model_attributes_type": "a section", "tuple_type": "a list"}


def describe(problem: Any, tree: dict[str, Any]) -> str:
    """`student.centres.sample_rate: must be less than or equal to 1, got 1.5`."""
    parts, kind = _key(problem["loc"], tree), problem["type"]
    if kind == "value_error":
        key, _, rule = str(problem["ctx"]["error"]).partition(" ")
        parts.append(key)
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        parts.append(problem["ctx"]["discriminator"].strip("'"))
        rule = _choice(problem["ctx"])
    else:
        rule = FIXED.get(kind) or f"{_rule(problem)}, got {_shown(problem['input'])}"
    return f"{'.'.join(parts)}: {rule}"


def _key(location: tuple[str | int, ...], tree: dict[str, Any]) -> list[str]:
    """Where a problem is, in keys of the file: without the names that pydantic adds where sections are to choose."""
    parts: list[str] = []
    node: Any = tree
    for part in location:
        if isinstance(node, dict) and part not in node and part in (node.get("name"), node.get("kind")):
            continue
        parts.append(str(part))
        node = node.get(part) if isinstance(node, dict) else None
    return parts


def _choice(context: dict[str, Any]) -> str:
    if "tag" not in context:
        return FIXED["missing"]
    return f"must be one of {context['expected_tags']}, got {context['tag']!r}"


def _rule(problem: Any) -> str:
    if problem["type"] in KINDS:
        return f"must be {KINDS[problem['type']]}"
    return str(problem["msg"]).replace("Input should be", "must be", 1).replace("String should", "must", 1)


def _shown(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)
