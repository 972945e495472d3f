"""Stands for `mx.sym` where MXNet is not installed: the nodes of a symbol file, for tests of the importer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LAYERS = {  # operator -> its variables after the data
    "Convolution": ["weight"],
    "BatchNorm": ["gamma", "beta", "moving_mean", "moving_var"],
    "LeakyReLU": ["gamma"],
    "FullyConnected": ["weight", "bias"],
}


class Recorder:
    """Stands for `mx.sym`: remembers the calls as the nodes of a symbol file."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []

    def Variable(self, name: str, **attrs: Any) -> Recorded:
        return self.add("null", name, [], attrs)

    def add(self, op: str, name: str, inputs: list[Recorded], attrs: dict[str, Any]) -> Recorded:
        texts = {key: str(value) for key, value in attrs.items()}
        numbers = [[source.number, 0, 0] for source in inputs]
        self.nodes.append({"op": op, "name": name, "attrs": texts, "inputs": numbers})
        return Recorded(self, len(self.nodes) - 1)

    def __getattr__(self, op: str) -> Callable[..., Recorded]:
        def call(data: Recorded, name: str, weight: Recorded | None = None, **attrs: Any) -> Recorded:
            wanted = [] if op == "FullyConnected" and weight is not None else LAYERS.get(op, [])
            own = [self.Variable(f"{name}_{part}") for part in wanted]
            return self.add(op, name, [data, *([weight] if weight is not None else []), *own], attrs)

        return call


class Recorded:
    def __init__(self, recorder: Recorder, number: int) -> None:
        self.recorder, self.number = recorder, number

    def _with(self, op: str, other: Any) -> Recorded:
        inputs = [self, other] if isinstance(other, Recorded) else [self]
        attrs = {} if isinstance(other, Recorded) else {"scalar": other}
        return self.recorder.add(op, f"{op}{len(self.recorder.nodes)}", inputs, attrs)

    def __add__(self, other: Recorded) -> Recorded:
        return self._with("elemwise_add", other)

    def __sub__(self, other: float) -> Recorded:
        return self._with("_minus_scalar", other)

    def __mul__(self, other: float) -> Recorded:
        return self._with("_mul_scalar", other)
