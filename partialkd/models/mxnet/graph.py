"""The graph of an MXNet IResNet (`model-symbol.json`), read without MXNet and checked node by node.

Expected, from the input to the embedding, as InsightFace's MXNet code builds "LResNet-E-IR" (R18, R34, R50, R100):

    data - 127.5, times a scale, convolution 3x3, BN, PReLU                                (conv0, bn0, relu0)
    four stages of units: BN, conv 3x3, BN, PReLU, conv 3x3 with the stride, BN, plus the unit's input; in the first
    unit of a stage (stride 2) the input goes through a convolution 1x1 of that stride and BN   (stageS_unitU_bn1, ...)
    BN, dropout (may be missing), fully connected, BN with fixed gamma                     (bn1, dropout0, pre_fc1, fc1)

What follows `fc1` (margin, softmax) is not looked at. Names are free except `fc1`: the structure counts, and each
parameter is the variable that its node reads. Every attribute that changes the arithmetic must have the value that
our network has; an attribute that is not known here is refused.
Errors: CheckpointError naming the file, the node and the rule.
Source: arXiv:1801.07698, section 3.2; layer facts from insightface/recognition/symbol/fresnet.py (unit version 3).
Differs: squeeze-and-excitation, bottleneck units, other unit versions, ReLU and input versions 0 and 2 are refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partialkd.errors import CheckpointError

OUTPUT = "fc1"
MEAN = 127.5  # of the pixels: with any other, zero padding would mean another grey
STAGES = 4
_ADD = ("elemwise_add", "_plus", "_Plus")
_COPY = ("_copy", "identity")
_MINUS = ("_minus_scalar", "_MinusScalar")
_TIMES = ("_mul_scalar", "_MulScalar")
# What does not change the result of a forward pass in evaluation mode.
_INERT = {
    "workspace", "cudnn_tune", "cudnn_off", "num_filter", "num_hidden", "momentum", "use_global_stats", "slope",
    "lower_bound", "upper_bound", "p", "eps", "fix_gamma", "scalar", "is_int", "kernel", "stride", "pad",
    "ctx_group", "lr_mult", "wd_mult", "mirror_stage", "force_mirroring",
}  # fmt: skip
# Attributes with one admissible value.
_FIXED: dict[str, dict[str, Any]] = {
    "Convolution": {"no_bias": True, "dilate": (1, 1), "num_group": 1, "layout": "NCHW"},
    "BatchNorm": {"axis": 1, "output_mean_var": False},
    "LeakyReLU": {"act_type": "prelu"},
    "FullyConnected": {"no_bias": False, "flatten": True},
    "Dropout": {"mode": "training", "axes": ()},
}


@dataclass(frozen=True)
class Node:
    """An operator or, with op "null", a variable. inputs: numbers of nodes."""

    op: str
    name: str
    attrs: dict[str, Any]
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A layer with parameters: the variables it reads, without its data, and what its arithmetic depends on."""

    name: str
    variables: tuple[str, ...]
    eps: float = 0.0  # BatchNorm
    fix_gamma: bool = False  # BatchNorm: gamma is one, whatever the file holds
    channels: int = 0  # convolution, fully connected: what it emits
    stride: int = 1


@dataclass(frozen=True)
class Unit:
    """bn1, conv1, bn2, prelu, conv2, bn3; shortcut: () or (convolution, BN)."""

    layers: tuple[Layer, ...]
    shortcut: tuple[Layer, ...]


@dataclass(frozen=True)
class Graph:
    """The network that a symbol describes."""

    scale: float  # pixels become (pixel - 127.5) * scale
    stem: tuple[Layer, ...]  # conv, BN, PReLU
    stages: tuple[tuple[Unit, ...], ...]
    last: tuple[Layer, ...]  # BN, fully connected, BN
    dropout: float


def read_graph(path: Path | str) -> Graph:
    """Read and check a symbol file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        nodes = [_node(entry) for entry in content["nodes"]]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not an MXNet symbol: {type(error).__name__}: {error}") from error
    for number, node in enumerate(nodes):
        if not all(0 <= source < number for source in node.inputs):
            raise CheckpointError(f"{path}: {node.name}: inputs must be nodes before it, got {node.inputs} at {number}")
    return _Walk(nodes, str(path)).graph()


def _node(entry: dict[str, Any]) -> Node:
    texts = {**entry.get("param", {}), **entry.get("attr", {}), **entry.get("attrs", {})}  # older and newer MXNet
    if any(output != 0 for _, output, *_ in entry["inputs"]):
        raise ValueError(f"{entry['name']} reads a second output")
    attrs = {key: _value(text) for key, text in texts.items() if not key.startswith("__")}
    return Node(str(entry["op"]), str(entry["name"]), attrs, tuple(int(source) for source, *_ in entry["inputs"]))


def _value(text: str) -> Any:
    """'True', '2e-05', '(3, 3)', '3L' -> bool, number, tuple of integers; anything else stays text."""
    if text in ("True", "False"):
        return text == "True"
    if re.fullmatch(r"[(\[][\d\s,L]*[)\]]", text):
        return tuple(int(number) for number in re.findall(r"\d+", text))
    try:
        return float(text) if re.search(r"[.eE]", text) else int(text.removesuffix("L"))
    except ValueError:
        return text


class _Walk:
    """Walk from `fc1` back to the data: each method takes the number of a node and returns what feeds it."""

    def __init__(self, nodes: list[Node], where: str) -> None:
        self._nodes, self._where = nodes, where

    def graph(self) -> Graph:
        numbers = [number for number, node in enumerate(self._nodes) if node.name == OUTPUT]
        if len(numbers) != 1:
            raise CheckpointError(f"{self._where}: must hold one node {OUTPUT!r}, the embedding, got {len(numbers)}")
        final, at = self._norm(numbers[0])
        linear, at = self._linear(at)
        dropout, at = self._dropout(at)
        norm, at = self._norm(at)
        units = []
        while self._nodes[at].op in _ADD:
            unit, at = self._unit(at)
            units.append(unit)
        stages = self._stages(units[::-1], at)
        prelu, at = self._prelu(at)
        norm0, at = self._norm(at)
        conv, at = self._conv(at, 3)
        if conv.stride != 1:
            raise self._wrong(conv.name, f"the first convolution must have stride 1, got {conv.stride}")
        return Graph(self._scale(at), (conv, norm0, prelu), stages, (norm, linear, final), dropout)

    def _unit(self, at: int) -> tuple[Unit, int]:
        name = self._nodes[at].name
        body, short = self._inputs(at, 2)
        norm3, source = self._norm(body)
        conv2, source = self._conv(source, 3)
        prelu, source = self._prelu(source)
        norm2, source = self._norm(source)
        conv1, source = self._conv(source, 3)
        norm1, source = self._norm(source)
        if conv1.stride != 1:
            raise self._wrong(conv1.name, f"the unit's stride must be in its second convolution, got {conv1.stride}")
        layers = (norm1, conv1, norm2, prelu, conv2, norm3)
        if short == source:
            return Unit(layers, ()), source
        norm, short = self._norm(short)
        conv, short = self._conv(short, 1)
        if short != source or conv.stride != conv2.stride:
            raise self._wrong(name, "the shortcut must begin at the unit's input and have the unit's stride")
        return Unit(layers, (conv, norm)), source

    def _stages(self, units: list[Unit], at: int) -> tuple[tuple[Unit, ...], ...]:
        """Cut before each unit of stride 2."""
        stages: list[list[Unit]] = []
        for unit in units:
            stride, name = unit.layers[4].stride, unit.layers[4].name
            if stride == 2 and unit.shortcut:
                stages.append([])
            elif stride != 1 or unit.shortcut or not stages:
                rule = "stride 2 and a shortcut convolution in a stage's first unit, neither in the others"
                raise self._wrong(name, f"must be: {rule}; got stride {stride}")
            stages[-1].append(unit)
        if len(stages) != STAGES:
            raise self._wrong(self._nodes[at].name, f"{STAGES} stages of units must follow, got {len(stages)}")
        return tuple(tuple(stage) for stage in stages)

    def _scale(self, at: int) -> float:
        """(data - 127.5) * scale, in front of the first convolution."""
        node = self._take(at, _TIMES)
        scale, (at,) = self._number(node, "scalar"), self._inputs(at, 1)
        minus = self._take(at, _MINUS)
        if (mean := self._number(minus, "scalar")) != MEAN or not scale > 0:
            rule = f"pixels must become (pixel - {MEAN}) times a positive number"
            raise self._wrong(minus.name, f"{rule}, got {mean} and {scale}")
        (at,) = self._inputs(at, 1)
        while self._nodes[at].op in _COPY:
            (at,) = self._inputs(at, 1)
        self._take(at, ("null",))
        return scale

    def _norm(self, at: int) -> tuple[Layer, int]:
        node = self._take(at, ("BatchNorm",))
        data, variables = self._split(at, 5)
        fixed = bool(node.attrs.get("fix_gamma", True))
        return Layer(node.name, variables, eps=self._number(node, "eps", 1e-3), fix_gamma=fixed), data

    def _conv(self, at: int, kernel: int) -> tuple[Layer, int]:
        node = self._take(at, ("Convolution",))
        side, pad = (kernel, kernel), (kernel // 2, kernel // 2)
        found = (node.attrs.get("kernel"), node.attrs.get("pad", (0, 0)), node.attrs.get("no_bias", False))
        stride = node.attrs.get("stride", (1, 1))
        if found != (side, pad, True) or stride not in ((1, 1), (2, 2)):
            rule = f"kernel, pad and no_bias must be {side}, {pad}, True and the stride 1 or 2"
            raise self._wrong(node.name, f"{rule}; got {found}, stride {stride}")
        data, variables = self._split(at, 2)
        channels = int(self._number(node, "num_filter"))
        return Layer(node.name, variables, channels=channels, stride=stride[0]), data

    def _prelu(self, at: int) -> tuple[Layer, int]:
        node = self._take(at, ("LeakyReLU",))
        data, variables = self._split(at, 2)  # PReLU alone has a second input
        return Layer(node.name, variables), data

    def _linear(self, at: int) -> tuple[Layer, int]:
        node = self._take(at, ("FullyConnected",))
        data, variables = self._split(at, 3)
        return Layer(node.name, variables, channels=int(self._number(node, "num_hidden"))), data

    def _dropout(self, at: int) -> tuple[float, int]:
        if self._nodes[at].op != "Dropout":
            return 0.0, at
        node = self._take(at, ("Dropout",))
        return self._number(node, "p", 0.5), self._inputs(at, 1)[0]

    def _take(self, at: int, ops: tuple[str, ...]) -> Node:
        """Return the node if it is one of these operators and has no attribute that would change its meaning."""
        node = self._nodes[at]
        if node.op not in ops:
            raise self._wrong(node.name, f"{ops[0]} expected here (LResNet-E-IR, unit version 3), got {node.op}")
        fixed = _FIXED.get(node.op, {})
        for key, value in node.attrs.items() if node.op != "null" else ():
            if key not in _INERT and (key not in fixed or value not in (fixed[key], "None")):
                raise self._wrong(node.name, f"{key} must be {fixed.get(key, 'absent')}, got {value}")
        return node

    def _number(self, node: Node, key: str, default: float | None = None) -> float:
        value = node.attrs.get(key, default)
        if isinstance(value, bool) or not isinstance(value, float | int):
            raise self._wrong(node.name, f"{key} must be a number, got {value!r}")
        return float(value)

    def _inputs(self, at: int, count: int) -> tuple[int, ...]:
        node = self._nodes[at]
        if len(node.inputs) != count:
            raise self._wrong(node.name, f"{node.op} must have {count} inputs, got {len(node.inputs)}")
        return node.inputs

    def _split(self, at: int, count: int) -> tuple[int, tuple[str, ...]]:
        """Split the inputs of a layer -> its data, the names of its variables."""
        data, *rest = self._inputs(at, count)
        names = tuple(self._take(number, ("null",)).name for number in rest)
        return data, names

    def _wrong(self, name: str, rule: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: node {name!r}: {rule}")
