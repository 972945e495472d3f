"""Write a network for other runtimes: each target is checked there, and its files appear only if it holds.

    OUT/model.onnx, model_fp16.onnx, model_int8.onnx, model_openvino.xml and .bin, model.tflite, ...
    OUT/export.json       what each target was measured at, also those that were not written, and why
    OUT/manifest.json     sizes and checksums of the files

Files are written into a hidden folder first and moved when they have passed; a target that fails leaves what another
export wrote under its name gone, so that nothing there is of another network.
Errors: ExportError and DataError before anything is written; what is wrong with one target later is in its Outcome.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from partialkd.export.base import ExportError, Graph, Target
from partialkd.export.layers import faulty_layer
from partialkd.export.parity import Judge, Parity
from partialkd.storage.atomic_files import discard, write_bytes, write_json
from partialkd.storage.listed_files import write_export_manifest
from partialkd.storage.manifest import MANIFEST
from partialkd.world.passes import Pass

REPORT = "export.json"


@dataclass(frozen=True)
class Outcome:
    """What became of a target."""

    target: Target
    parity: Parity | None
    problem: str | None  # None: its files are there
    notes: dict[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return it for the report."""
        target = self.target
        return {
            "target": target.name,
            "precision": target.precision,
            "files": list(target.files) if self.problem is None else [],
            "not_written": self.problem,
            "runtime": f"{target.runtime} {target.version()}",
            "least": target.least,
            "input": target.takes,
            **(self.parity.facts() if self.parity else {}),
            **self.notes,
        }


def export_targets(
    network: nn.Module,
    graph: Graph,
    targets: Sequence[Target],
    judge: Judge,
    folder: Path,
    more: dict[str, Any],
) -> list[Outcome]:
    """Write every target that holds. network: in eval mode, of which `graph` is; more: facts for the report."""
    folder.mkdir(parents=True, exist_ok=True)
    discard(folder / MANIFEST)  # of earlier files
    outcomes = []
    for target in targets:
        with Pass(f"writing {target.name} and running it"):
            outcomes.append(_written(network, graph, target, judge, folder))
    set_facts = {"set": judge.set.name, "pictures": len(judge.pictures), "tar_network": judge.tar}
    write_json(folder / REPORT, {**more, **set_facts, "targets": [one.facts() for one in outcomes]})
    names = [name for one in outcomes if one.problem is None for name in one.target.files]
    write_export_manifest(folder, (*names, REPORT))
    return outcomes


def _written(network: nn.Module, graph: Graph, target: Target, judge: Judge, folder: Path) -> Outcome:
    for name in target.files:
        discard(folder / name)
    with tempfile.TemporaryDirectory() as hidden:
        work, notes = Path(hidden), {}
        try:
            parity = fitted(target, graph, judge, work)
            notes = target.notes()
        except ExportError as error:
            return Outcome(target, None, _blamed(str(error), network, target, graph, judge.pictures), notes)
        if problem := parity.problem(target):
            return Outcome(target, parity, _blamed(problem, network, target, graph, judge.pictures), notes)
        for name in reversed(target.files):  # last the one that a program is given
            write_bytes(folder / name, (work / name).read_bytes())
    return Outcome(target, parity, None, notes)


def fitted(target: Target, graph: Graph, judge: Judge, folder: Path) -> Parity:
    """Write a target, as near to the network as the bars want and it can -> how near it is."""
    while True:
        target.write(graph, folder)
        parity = judge.compare(target.running(folder, graph), target)
        if not parity.problem(target) or not target.exacter():
            return parity


def _blamed(problem: str, network: nn.Module, target: Target, graph: Graph, pictures: np.ndarray) -> str:
    return f"{problem}; first wrong at {faulty_layer(network, target, graph, pictures)}"
