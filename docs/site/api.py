"""Writes the page of the API: the modules that programs of one's own are made with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# What a page of the docs tells to import, and what is derived from to extend the trainer.
MODULES = (
    "partialkd",
    "partialkd.config.load",
    "partialkd.models",
    "partialkd.models.saved",
    "partialkd.models.model_folder",
    "partialkd.centres.engine",
    "partialkd.methods.base",
    "partialkd.methods.terms.base",
    "partialkd.data.formats.recordio",
    "partialkd.evaluate.verification",
    "partialkd.evaluate.card",
    "partialkd.export.edge",
    "partialkd.export.base",
    "partialkd.world.world",
)
HEAD = """# API

Everything is a plain module under `partialkd`; [extending.md](../extending.md) shows how parts of one's own are put in.
Shapes stand in brackets: `(b, D)` is a tensor of b rows of D numbers.
"""


def write(folder: Path) -> None:
    """Write api.md into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [HEAD]
    for module in MODULES:
        parts.append(f"## {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n")
    (folder / "api.md").write_text("\n".join(parts), encoding="utf-8")


def as_text(_app: Any, _what: str, _name: str, _it: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings are plain text, in which indented lines are code and `words` too; no other mark means anything."""
    found: list[str] = []
    in_list = in_code = False
    for line in lines:
        item = line.startswith("- ")
        continued = in_list and line.startswith("  ") and not line.startswith("    ")
        code = line.startswith("  ") and not continued
        if code and not in_code:
            found += ["", "::", ""]
        elif line and ((in_code and not code) or (item and not in_list)):
            found.append("")
        if line:
            in_list, in_code = item or continued, code
        found.append(line if code else "``".join(_escaped(p, n) for n, p in enumerate(line.split("`"))))
    lines[:] = [*found, ""]


def _escaped(part: str, number: int) -> str:
    return part if number % 2 else re.sub(r"([*_|\\])", r"\\\1", part)
