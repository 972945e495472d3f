"""The digest of an ONNX file changes with everything that decides what it says; files that could run for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper

from partialkd.errors import CheckpointError
from partialkd.models.onnx_file import check_that_it_ends, onnx_digest

WEIGHT = b"\0\0\x80?" * 4


def tensor(name: str, place: str | None = None) -> TensorProto:
    """(2, 2) float32, in a file of its own where one is named."""
    made: TensorProto = helper.make_tensor(name, TensorProto.FLOAT, [2, 2], WEIGHT, raw=True)
    if place is not None:
        made.ClearField("raw_data")
        made.data_location = TensorProto.EXTERNAL
        entry = made.external_data.add()
        entry.key, entry.value = "location", place
    return made


def model(weight: str | None = None, constant: str | None = None, inner: str | None = None) -> ModelProto:
    """x W + c, then LeakyRelu, then one branch of an If that holds a weight; each in a file or not."""
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["h", "v"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 2])],
        [tensor("v", inner)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Constant", [], ["c"], value=tensor("c", constant)),
        helper.make_node("Add", ["m", "c"], ["a"]),
        helper.make_node("LeakyRelu", ["a"], ["h"], alpha=0.25),
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True])),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    made: ModelProto = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [tensor("w", weight)]))
    return made


def digest(folder: Path, made: ModelProto) -> str:
    (folder / "t.onnx").write_bytes(made.SerializeToString())
    return onnx_digest(folder / "t.onnx")


def test_it_changes_with_the_graph(tmp_path: Path) -> None:
    """With an attribute of a node, the order of nodes' inputs, an operation, an initialiser; not with the name."""
    before = digest(tmp_path, model())
    (tmp_path / "t.onnx").rename(tmp_path / "other.onnx")
    assert onnx_digest(tmp_path / "other.onnx") == before

    slope, swapped, operation, value = (model() for _ in range(4))
    attribute: AttributeProto = slope.graph.node[3].attribute[0]
    attribute.f = 0.5
    swapped.graph.node[2].input[:] = ["c", "m"]
    operation.graph.node[2].op_type = "Sub"
    value.graph.initializer[0].raw_data = WEIGHT[::-1]
    changed = [digest(tmp_path, made) for made in (slope, swapped, operation, value)]
    assert len({before, *changed}) == 5


@pytest.mark.parametrize("where", ["weight", "constant", "inner"])
def test_it_changes_with_data_outside_the_file(tmp_path: Path, where: str) -> None:
    """Of an initialiser, of a node's attribute, of an inner graph; one outside the folder is refused."""
    (tmp_path / "data").write_bytes(WEIGHT)
    before = digest(tmp_path, model(**{where: "data"}))
    assert digest(tmp_path, model(**{where: "data"})) == before
    (tmp_path / "data").write_bytes(WEIGHT[::-1])
    assert digest(tmp_path, model(**{where: "data"})) != before
    with pytest.raises(CheckpointError, match=r"external data must be a file in its folder, got '\.\./data'"):
        digest(tmp_path, model(**{where: "../data"}))


def looping(operator: str, functions: bool = False) -> ModelProto:
    """x through an operator that holds a graph, or through a function that holds it; a Loop's runs for ever."""
    value = lambda name, kind: helper.make_tensor_value_info(name, kind, None)
    step = [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Relu", ["h"], ["k"])]
    inputs = [value("i", TensorProto.INT64), value("go", TensorProto.BOOL), value("h", TensorProto.FLOAT)]
    outputs = [value("again", TensorProto.BOOL), value("k", TensorProto.FLOAT)]
    body = helper.make_graph(step, "body", inputs, outputs)
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True])),
        helper.make_node(operator, ["", "yes", "x"], ["y"], body=body),
    ]
    opset = helper.make_opsetid("", 17)
    calls = [helper.make_node("f", ["x"], ["y"], domain="own")]
    f = helper.make_function("own", "f", ["x"], ["y"], nodes, [opset])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = helper.make_graph(calls if functions else nodes, "g", ends[:1], ends[1:])
    opsets = [opset, helper.make_opsetid("own", 1)]
    made: ModelProto = helper.make_model(graph, opset_imports=opsets, functions=[f] if functions else [])
    return made


def calling(*bodies: tuple[str, ...]) -> ModelProto:
    """Functions f0, f1, ...: which of them each calls, one after the other; the graph calls f0."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function(
            "own", f"f{number}", ["x"], ["y"],
            [helper.make_node(name, ["x"], ["y"], domain="own" if name[0] == "f" else "") for name in body], opsets,
        )
        for number, body in enumerate(bodies)
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("f0", ["x"], ["y"], domain="own")], "g", ends[:1], ends[1:])
    made: ModelProto = helper.make_model(graph, opset_imports=opsets, functions=functions)
    return made


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (looping("Loop"), "holds the operator 'Loop': an embedder must not repeat a part of its graph"),
        (looping("Scan"), "holds the operator 'Scan'"),
        (looping("Loop", functions=True), "holds the operator 'Loop'"),
        (calling(("f1",), ("f0",)), "its function 'f0' calls itself"),
        (calling(*((f"f{n}",) * 10 for n in range(1, 8)), ("Relu",)), "at most 1000000 nodes with its functions"),
    ],
    ids=["loop", "scan", "in a function", "calls itself", "grows"],
)
def test_what_could_run_for_ever_is_refused(made: ModelProto, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(CheckpointError, match=rf"t\.onnx: .*{said}"):
        check_that_it_ends(tmp_path / "t.onnx")


def test_branches_and_functions_are_no_loops(tmp_path: Path) -> None:
    for made in (model(), calling(("f1", "f1"), ("Relu",))):
        (tmp_path / "t.onnx").write_bytes(made.SerializeToString())
        check_that_it_ends(tmp_path / "t.onnx")
