"""Writes the configuration's reference: each key, what it takes, its default, and the comment beside it in the code.

Made of the types in partialkd/config, which also check a configuration, so that the two cannot differ.
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from partialkd.config.base import OnResume, Section
from partialkd.config.job import Config
from partialkd.config.keys import sections_of

HEAD = """# Configuration

One TOML file a run, whole; `section.key=value` on the command line replaces single keys. Unknown, missing and wrong
keys end the run before it starts, with the key, the rule and the value. This page is made of the types that check it.

The column *resume*: `free`, a resumed run may have another value; `longer`, it may grow where that is asked for;
otherwise it must stay what it was.
"""
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
ANY = 1e7  # bounds beyond it are there so that nothing overflows, and are left out
KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}


def comments_of(section: type[Section]) -> dict[str, str]:
    """Name of a field -> the comment beside it, or in the lines right above it."""
    source = inspect.getsource(section)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    found = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    alone = {
        token.start[0]
        for token in tokens
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()
    }
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for line in body.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            above, first = [], line.lineno - 1
            while first in alone:
                above.insert(0, found[first])
                first -= 1
            beside = [found[n] for n in range(line.lineno, (line.end_lineno or 0) + 1) if n in found]
            texts[line.target.id] = " ".join(above + beside)
    return texts


def comment_of(section: type[Section], name: str) -> str:
    """Of the class that declares the field."""
    declared = next(c for c in section.__mro__ if name in inspect.get_annotations(c))
    return comments_of(declared).get(name, "")


def kind_of(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """In words, what a key takes: of its JSON schema."""
    if "$ref" in schema:
        return kind_of(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(kind_of(one, definitions) for one in schema[several]))
    if "properties" in schema or schema.get("type") == "object":
        return "table"
    if schema.get("type") == "null":
        return "nothing"
    if schema.get("type") == "array":
        items = schema.get("items") or {}
        return f"list: {kind_of(items, definitions)}" if items else f"list of {len(schema.get('prefixItems', []))}"
    bounds = [f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if abs(schema.get(key, ANY)) < ANY]
    return " ".join([KINDS.get(schema.get("type", ""), "anything"), *bounds])


def default_of(field: FieldInfo) -> str:
    """As TOML has it; a table's own keys say theirs."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or isinstance(value, Section):
        return ""
    return (
        "`"
        + (str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else f"{value}")
        + "`"
    )


def cell(text: str) -> str:
    """Text that cannot end its cell of a table, nor open a tag."""
    parts = text.replace("|", "\\|").replace("\n", " ").split("`")
    return "`".join(part.replace("<", "&lt;") if number % 2 == 0 else part for number, part in enumerate(parts))


def rows_of(section: type[Section]) -> Iterator[str]:
    """Lines of a section's table."""
    schema = section.model_json_schema()
    definitions = schema.get("$defs", {})
    for name, field in section.model_fields.items():
        resume = {OnResume.FREE: "free", OnResume.LENGTH: "longer"}
        marks = [resume[mark] for mark in field.metadata if isinstance(mark, OnResume)]
        kind = kind_of(schema["properties"][name], definitions)
        parts = (f"`{name}`", kind, default_of(field), " ".join(marks), comment_of(section, name))
        yield "| " + " | ".join(cell(part) for part in parts) + " |"


def sections(root: type[Section] = Config, place: str = "") -> Iterator[tuple[str, type[Section]]]:
    """(dotted place, section) of every table, in the order of the file."""
    for name, field in root.model_fields.items():
        for section in sections_of(field.annotation):
            yield place + name, section
            yield from sections(section, f"{place}{name}.")


def page() -> str:
    """The page, in Markdown. A section that stands in two places is written once."""
    places: dict[type[Section], list[str]] = {}
    for place, section in sections():
        places.setdefault(section, []).append(place)
    parts = [HEAD]
    for section, where in places.items():
        named = section.model_fields.get("name")
        choice = named.default if named and isinstance(named.default, str) else None
        names = list(dict.fromkeys(where))
        title = ", ".join(f"`{one}`" for one in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        parts.append(f"## {title}{f' with name `{choice}`' if choice else ''}\n")
        text = inspect.getdoc(section)
        if section.__dict__.get("__doc__") and text:
            parts.append("\n".join(cell(line) for line in text.splitlines()) + "\n")
        if section.model_fields:
            parts += ["| key | takes | default | resume | what |", "|---|---|---|---|---|", *rows_of(section), ""]
    return "\n".join(parts)


def write(folder: Path) -> None:
    """Write configuration.md into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "configuration.md").write_text(page(), encoding="utf-8")
