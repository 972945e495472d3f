"""The methods, by the name a configuration gives them."""

from __future__ import annotations

from typing import Any

from partialkd.methods.adadistill import AdaDistill
from partialkd.methods.arcdistill import ArcDistill
from partialkd.methods.arcface import ArcFace
from partialkd.methods.base import Method, Outcome
from partialkd.methods.cosdistill import CosDistill
from partialkd.methods.cosface import CosFace
from partialkd.methods.margindistillation import MarginDistillation

METHODS: dict[str, Any] = {
    "arcface": ArcFace,
    "cosface": CosFace,
    "arcdistill": ArcDistill,
    "cosdistill": CosDistill,
    "adadistill": AdaDistill,
    "margindistillation": MarginDistillation,
}


def make_method(config: Any) -> Method:
    """The method of a `method` section."""
    method: Method = METHODS[config.name](config)
    return method


__all__ = ["METHODS", "Method", "Outcome", "make_method"]
