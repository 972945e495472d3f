"""Margins: functions of the target cosine, and those with a name of their own, which take more than that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from partialkd.config import (
    AdaFaceMarginConfig,
    CurricularMarginConfig,
    ElasticArcMarginConfig,
    ElasticCosMarginConfig,
    MagFaceMarginConfig,
    MarginSection,
    SphereMarginConfig,
)
from partialkd.methods.margins.adaface import AdaFaceMargin
from partialkd.methods.margins.base import Margin, MarginInputs, Moved, PlainMargin
from partialkd.methods.margins.curricular import CurricularMargin
from partialkd.methods.margins.elastic import elastic_arc, elastic_cos
from partialkd.methods.margins.functions import (
    EDGE,
    arc_margin,
    combined_margin,
    cos_margin,
    falling_cosine,
    margin_softmax,
    straight_through,
)
from partialkd.methods.margins.magface import MagFaceMargin
from partialkd.methods.margins.sphere import SphereMargin

NAMED: dict[type[MarginSection], Callable[[Any], Margin]] = {
    AdaFaceMarginConfig: AdaFaceMargin,
    MagFaceMarginConfig: MagFaceMargin,
    ElasticArcMarginConfig: elastic_arc,
    ElasticCosMarginConfig: elastic_cos,
    CurricularMarginConfig: CurricularMargin,
    SphereMarginConfig: SphereMargin,
}


def named_margin(config: MarginSection) -> Margin:
    """Make the margin of a `margin` section."""
    return NAMED[type(config)](config)


__all__ = [
    "EDGE",
    "NAMED",
    "Margin",
    "MarginInputs",
    "Moved",
    "PlainMargin",
    "arc_margin",
    "combined_margin",
    "cos_margin",
    "falling_cosine",
    "margin_softmax",
    "named_margin",
    "straight_through",
]
