"""docs/flows.md: what it names is there, and each flow fits into a head."""

from __future__ import annotations

import ast
import re

import pytest

from helpers.places import ROOT

PAGE = (ROOT / "docs" / "flows.md").read_text(encoding="utf-8")
FLOWS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
_PLACE = re.compile(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)")


def places(flow: str) -> list[tuple[str, str]]:
    """(file, function or class) of every hop."""
    return [(file, name) for file, names in _PLACE.findall(FLOWS[flow]) for name in re.findall(r"`(\w+)`", names)]


@pytest.mark.parametrize("flow", FLOWS)
def test_every_hop_is_there(flow: str) -> None:
    assert places(flow)
    for file, name in places(flow):
        tree = ast.parse((ROOT / "partialkd" / file).read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, f"{file} has no {name}"


@pytest.mark.parametrize("flow", FLOWS)
def test_a_flow_has_under_ten_files(flow: str) -> None:
    assert len({file for file, _ in places(flow)}) < 10
