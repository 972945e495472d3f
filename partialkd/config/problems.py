"""What is wrong with a configuration, a line a problem: `key: rule, got value`, and where the value comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from partialkd.config.keys import exists, nearest
from partialkd.config.overrides import Override, shortened

UNKNOWN = "extra_forbidden"
FIXED = {UNKNOWN: "unknown key", "missing": "required key is missing"}
KINDS = {"model_type": "a section", "model_attributes_type": "a section", "tuple_type": "a list"}


def describe(problem: Any, tree: dict[str, Any], origin: str, overrides: Sequence[Override]) -> str:
    """`file: student.centres.sample_rate: must be ..., got 1.5`, or `override student.centres.sample_rate=1.5: ...`."""
    key, rule = _key_and_rule(problem, tree)
    unknown = problem["type"] == UNKNOWN
    for override in reversed(overrides):
        if override.concerns(key) or (unknown and override.key.startswith(f"{key}.")):
            named = override.key if unknown and not key.startswith(f"{override.key}.") else key
            place = "" if named == override.key else f"{named}: "
            return f"override {override.text}: {place}{rule}{_meant(named) if unknown else ''}"
    return f"{origin}: {key}: {rule}{_meant(key) if unknown else ''}"


def _key_and_rule(problem: Any, tree: dict[str, Any]) -> tuple[str, str]:
    parts, kind = _key(problem["loc"], tree), problem["type"]
    if kind == "value_error":
        rule = str(problem["ctx"]["error"])
        if rule.startswith("must "):
            rule = f"{rule}, got {_shown(problem['input'])}"
        else:
            key, _, rule = rule.partition(" ")
            parts.append(key)
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        parts.append(problem["ctx"]["discriminator"].strip("'"))
        rule = _choice(problem["ctx"])
    else:
        rule = FIXED.get(kind) or f"{_rule(problem)}, got {_shown(problem['input'])}"
    return ".".join(parts), rule


def _meant(key: str) -> str:
    if exists(key):  # in a section of another name or kind
        return " here, though others have it"
    found = nearest(key)
    return f", did you mean {found}?" if found else ""


def _key(location: tuple[str | int, ...], tree: dict[str, Any]) -> list[str]:
    """Where a problem is, in keys of the file: without the names that pydantic adds where sections are to choose."""
    parts: list[str] = []
    node: Any = tree
    for part in location:
        if isinstance(node, dict) and part not in node and part in (node.get("name"), node.get("kind")):
            continue
        if part in ("<named>", "<number>"):  # tags of the forms that a margin may have
            continue
        parts.append(str(part))
        if isinstance(node, list | tuple) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
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
    try:
        return shortened(repr(list(value) if isinstance(value, tuple) else value))
    except ValueError:  # Python does not print whole numbers of more than some 4,300 digits
        return f"a whole number of {value.bit_length()} bits" if isinstance(value, int) else "a number too long to show"
