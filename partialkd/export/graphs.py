"""ONNX graphs as targets need them: cut off after a layer, with a fixed batch, with the names of layers."""

from __future__ import annotations

import ast
from typing import Any

from partialkd.export.base import OUTPUT

SCOPES = "pkg.torch.onnx.name_scopes"  # what torch's exporter notes of a node


def cut_after(content: bytes, tensor: str) -> bytes:
    """Return the graph from its input to a tensor, which is flattened to (b, ...) and called "embeddings"."""
    import onnx
    from onnx import TensorProto, helper

    model: Any = onnx.load_from_string(content)
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    needed, wanted = set(), [tensor]
    while wanted:
        node = makers.get(wanted.pop())
        if node is not None and node.output[0] not in needed:
            needed.add(node.output[0])
            wanted += node.input
    kept = [node for node in graph.node if node.output[0] in needed]
    for node in kept:  # a name that the last node of the whole graph may have
        node.output[:] = [f"{OUTPUT}_of_layer" if name == OUTPUT else name for name in node.output]
    last = f"{OUTPUT}_of_layer" if tensor == OUTPUT else tensor
    del graph.node[:]
    graph.node.extend([*kept, helper.make_node("Flatten", [last], [OUTPUT], name="flattened", axis=1)])
    used = {name for node in kept for name in node.input}
    constants = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:], graph.value_info[:], graph.output[:]
    graph.initializer.extend(constants)
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None))
    return bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())


def with_batch(content: bytes, batch: int | None) -> bytes:
    """Fix the batch, which is free; None: leave it so."""
    if batch is None:
        return content
    import onnx

    model: Any = onnx.load_from_string(content)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    for value in model.graph.output:
        if value.type.tensor_type.HasField("shape") and len(value.type.tensor_type.shape.dim):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    return bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())


def layer_outputs(content: bytes, modules: set[str]) -> dict[str, str]:
    """Name the last tensor that each of these modules computes, in the order of the graph: {module: tensor}."""
    import onnx

    found: dict[str, str] = {}
    for node in onnx.load_from_string(content).graph.node:
        noted = next((one.value for one in node.metadata_props if one.key == SCOPES), "[]")
        scopes = [scope for scope in ast.literal_eval(noted) if scope in modules]
        if scopes:
            found.pop(scopes[-1], None)
            found[scopes[-1]] = node.output[0]
    return found
