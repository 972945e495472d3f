"""Overrides of the command line: `section.key=value`, the value as in TOML, or else as the text that it is.

Where a key takes text, quotes are not needed: `run.name=20241129`, `evaluate.sets=[lfw.bin, agedb_30.bin]`.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import Any

from partialkd.config.keys import wants
from partialkd.errors import ConfigError

DEEPEST = 16  # parts of a dotted key, and tables in tables; ours have five at most
_ITEM = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^,]*?)\s*(?:,|$)""")


@dataclass(frozen=True)
class Override:
    """An override that was read."""

    text: str  # as it was given, cut where it is long
    parts: tuple[str, ...]
    value: Any

    @property
    def key(self) -> str:
        return ".".join(self.parts)

    def concerns(self, key: str) -> bool:
        """Whether `key` is what was given here, or a part of that."""
        return key == self.key or key.startswith(f"{self.key}.")


def read_override(given: str) -> Override:
    """ConfigError naming the override where it is not one."""
    key, equals, text = given.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts):
        raise ConfigError(f"override {shortened(given)!r}: must be section.key=value")
    if len(parts) > DEEPEST:
        raise ConfigError(f"override {shortened(given)}: keys have at most {DEEPEST} parts, this one {len(parts)}")
    return Override(shortened(given), parts, _value(".".join(parts), text, given))


def apply_override(tree: dict[str, Any], override: Override) -> None:
    """Put it into the nested dictionary of a file."""
    table = tree
    for depth, part in enumerate(override.parts[:-1]):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            place = ".".join(override.parts[: depth + 1])
            raise ConfigError(f"override {override.text!r}: {place} is a value, not a section")
    table[override.parts[-1]] = override.value


def _value(key: str, text: str, given: str) -> Any:
    kind = wants(key)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return _items(text, kind == "texts") if re.fullmatch(r"\s*\[.*\]\s*", text) else text
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise ConfigError(f"override {shortened(given)}: too long a number, or nested too deep") from error
    if kind == "text" and not isinstance(value, str | list | dict):
        return text.strip()  # 007, 1.10 and 2024_11 keep their form
    if kind == "texts" and isinstance(value, list):
        return _items(text, texts=True)
    return value


def _items(text: str, texts: bool) -> list[Any]:
    """Items of a list in brackets, bare words among them; `texts`: whatever is not quoted is a word."""
    return [_item(item, texts) for item in _ITEM.findall(text.strip()[1:-1]) if item]


def _item(item: str, text: bool) -> Any:
    try:
        value = tomllib.loads(f"value = {item}")["value"]
    except ValueError:
        return item
    return item if text and not isinstance(value, str) else value


def shortened(text: str, most: int = 80) -> str:
    """What a message can show of it."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
