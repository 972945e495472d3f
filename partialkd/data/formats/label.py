"""Class ids as the formats of others hold them: whole numbers from 0 on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from partialkd.data.formats.property_file import MAX_CLASSES
from partialkd.errors import DataError


def label_of(value: Any, path: Path, record: object) -> int:
    """Return a label that is a class id; DataError naming file and record for any other."""
    if type(value) is not int or not 0 <= value < MAX_CLASSES:
        rule = f"label must be an integer in [0, {MAX_CLASSES})"
        hint = "; number the identities from 0 on" if isinstance(value, str | float) else ""
        raise DataError(f"{path}: {record}: {rule}, got {_shown(value)}{hint}")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
