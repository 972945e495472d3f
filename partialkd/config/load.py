"""Configuration files: TOML read strictly, dotted overrides, the resolved configuration written beside the results.

Errors: `ConfigError`, one line a problem, with file or override, the dotted key, the rule and the value, e.g.
`run.toml: student.centres.sample_rate: must be less than or equal to 1, got 1.5`. Nothing is inherited between files;
what `save_config` writes can be used as a configuration file again.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from partialkd.config import Config
from partialkd.config.overrides import DEEPEST, Override, apply_override, read_override, shortened
from partialkd.config.problems import describe
from partialkd.errors import ConfigError
from partialkd.storage.atomic_files import write_text


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, apply `section.key=value` overrides, validate."""
    tree = read_tree(path)
    given = [read_override(override) for override in overrides]
    for override in given:
        apply_override(tree, override)
    return parse_config(tree, str(path), given)


def read_tree(path: str | Path) -> dict[str, Any]:
    """The nested dictionary of a TOML file, with or without a byte order mark."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: must be text in UTF-8: {error}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: values are nested too deep") from error
    except ValueError as error:  # Python reads no whole numbers of more than some 4,300 digits
        raise ConfigError(f"{path}: {_long_number(text)}") from error


def _long_number(text: str) -> str:
    """Line and key of the first number that is too long."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.search(r"[0-9_]{4000,}", line):
            key = line[: found.start()].partition("=")[0].strip()
            return f"line {number}: {shortened(key)}: must not be a number of {len(found[0])} digits"
    return "holds a number that cannot be read"


def parse_config(tree: dict[str, Any], origin: str = "config", overrides: Sequence[Override] = ()) -> Config:
    """Validate a nested dictionary."""
    try:
        return Config.model_validate(_tuples(tree, origin))
    except ValidationError as error:
        raise ConfigError(*(describe(problem, tree, origin, overrides) for problem in error.errors())) from None


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as TOML that `load_config` reads back to an equal one."""
    write_text(path, as_toml(config))


def as_toml(config: Config) -> str:
    """The text that `save_config` writes."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _tuples(value: Any, origin: str, keys: tuple[str, ...] = ()) -> Any:
    if len(keys) > DEEPEST:
        raise ConfigError(f"{origin}: {'.'.join(keys)}...: keys are nested at most {DEEPEST} deep")
    if isinstance(value, dict):
        return {key: _tuples(item, origin, (*keys, shortened(key))) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item, origin, (*keys, str(at))) for at, item in enumerate(value))
    return value
