"""Methods: the class of each method's section. Everything else about a method is in its section (partialkd.config)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from partialkd.config import (
    AdaDistillConfig,
    MarginDistillationConfig,
    MethodSection,
    TeacherCentresConfig,
    TrainedCentresConfig,
)
from partialkd.methods.adadistill import AdaDistill
from partialkd.methods.base import Method, Outcome
from partialkd.methods.margin_softmax import MARGINS, MarginSoftmax
from partialkd.methods.margindistillation import MarginDistillation

METHODS: dict[type[MethodSection], Callable[[Any], Method]] = {
    **dict.fromkeys([*MARGINS, TrainedCentresConfig, TeacherCentresConfig], MarginSoftmax),
    AdaDistillConfig: AdaDistill,
    MarginDistillationConfig: MarginDistillation,
}


def make_method(config: MethodSection) -> Method:
    """The method of a `method` section."""
    return METHODS[type(config)](config)


__all__ = ["METHODS", "Method", "Outcome", "make_method"]
