"""What is wrong with a configuration, in one line for its user: the dotted key of the file, the rule, the value.

`describe` turns one problem as pydantic reports it into such a line. The validators of partialkd.config raise
ValueError("key rule"), the key relative to their section.
"""

from __future__ import annotations

from typing import Any

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
