"""ONNX files as they lie on the disk: their digest, and whether running them can end. Nothing here runs one.

Errors: CheckpointError naming the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from partialkd.errors import CheckpointError

MOST_NODES = 1_000_000  # of all graphs and functions, written out; the largest networks here have about a thousand


def read_model(path: Path) -> Any:
    """Read the ModelProto of a file, without its external data."""
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, ValueError, DecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as ONNX: {error}") from error
    if not model.graph.node:  # protobuf takes an empty file, and some that are none
        raise CheckpointError(f"{path}: cannot be read as ONNX: it holds no network")
    return model


def onnx_digest(path: Path) -> str:
    """Hash the file (graph and attributes too) and the external data it names, which must lie in its folder: sha256."""
    try:
        digest = hashlib.sha256(path.read_bytes())
        for place in sorted(set(_external_data(read_model(path)))):
            file = (path.parent / place).resolve()
            if not (file.is_relative_to(path.parent.resolve()) and file.is_file()):
                raise CheckpointError(f"{path}: external data must be a file in its folder, got {place!r:.80}")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read as ONNX: {error}") from error
    return digest.hexdigest()


def check_that_it_ends(path: Path) -> None:
    """Raise CheckpointError if the network could run, or be written out, for ever: no timeout reaches onnxruntime.

    Operators that hold a graph repeat it (Loop without end, if the file says so), If alone does not. A network that
    embeds faces has none of them, so they are refused whatever their number of turns.
    """
    model = read_model(path)
    functions = {_key(function.domain, function.name, function): function.node for function in model.functions}
    total = _Counter(functions, path).count(model.graph.node)
    if total > MOST_NODES:
        raise CheckpointError(f"{path}: must have at most {MOST_NODES} nodes with its functions written out")


class _Counter:
    """Counts nodes, those of inner graphs and of called functions at each use."""

    def __init__(self, functions: dict[tuple[str, ...], Any], path: Path) -> None:
        self.functions, self.path = functions, path
        self.sizes: dict[tuple[str, ...], int | None] = {}  # of functions; None: being counted

    def count(self, nodes: Any) -> int:
        return sum(self._of_node(node) for node in nodes)

    def _of_node(self, node: Any) -> int:
        inner, key = list(_graphs(node)), _key(node.domain, node.op_type, node)
        if inner and node.op_type != "If":
            rule = "an embedder must not repeat a part of its graph, which may never end"
            raise CheckpointError(f"{self.path}: holds the operator {node.op_type!r:.80}: {rule}")
        called = self._of_function(key) if key in self.functions else 0
        return 1 + called + sum(self.count(graph.node) for graph in inner)

    def _of_function(self, key: tuple[str, ...]) -> int:
        if key not in self.sizes:
            self.sizes[key] = None
            self.sizes[key] = self.count(self.functions[key])
        size = self.sizes[key]
        if size is None:
            raise CheckpointError(f"{self.path}: its function {key[1]!r:.80} calls itself")
        return size


def _key(domain: str, name: str, message: Any) -> tuple[str, ...]:
    return ("" if domain == "ai.onnx" else domain, name, getattr(message, "overload", ""))


def _graphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _external_data(message: Any) -> Iterator[str]:
    """Find the files that any tensor in it names: of initialisers, attributes of nodes, inner graphs, functions."""
    for field, value in message.ListFields():
        if field.name == "external_data":
            yield from (item.value for item in value if item.key == "location")
        elif field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from _external_data(inner)
