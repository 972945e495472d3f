"""A section a method, told apart by `name`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from partialkd.config.base import PositiveFloat, Radians, Section


class CombinedMargin(Section):
    """Target cosine becomes cos(m1 * theta + m2) - m3 (ArcFace, section 3 "combined margin")."""

    m1: Annotated[float, Field(ge=1, le=4)] = 1.0
    m2: Radians = 0.5
    m3: Annotated[float, Field(ge=0, le=1)] = 0.0
    gradient: Literal["true", "straight_through"] = "true"


class ArcFaceConfig(Section):
    name: Literal["arcface"]
    scale: PositiveFloat = 64.0
    margin: CombinedMargin = CombinedMargin()


class CosFaceConfig(Section):
    name: Literal["cosface"]
    scale: PositiveFloat = 64.0
    margin: Annotated[float, Field(ge=0, le=1)] = 0.35


class ArcDistillConfig(Section):
    name: Literal["arcdistill"]
    scale: PositiveFloat = 64.0
    margin: Radians = 0.45


class CosDistillConfig(Section):
    name: Literal["cosdistill"]
    scale: PositiveFloat = 64.0
    margin: Annotated[float, Field(ge=0, le=1)] = 0.35


class AdaDistillConfig(Section):
    name: Literal["adadistill"]
    scale: PositiveFloat = 64.0
    kind: Literal["arc", "cos"] = "arc"
    margin: Radians = 0.45  # radians for arc, cosine for cos
    weighted: bool = True  # alpha' (True) or alpha (False)
    initial_centres: Literal["teacher_means", "random", "exclude"] = "teacher_means"
    first_sight: bool = True  # a class seen first takes the mean of its teacher embeddings
    renormalise: bool = False  # bring stored centres back to length one after each update

    @model_validator(mode="after")
    def _cosine_margin(self) -> AdaDistillConfig:
        if self.kind == "cos" and self.margin > 1:
            raise ValueError(f'margin must be at most 1 with kind = "cos", got {self.margin}')
        return self


class MarginDistillationConfig(Section):
    name: Literal["margindistillation"]
    scale: PositiveFloat = 64.0
    margin_min: Radians = 0.2
    margin_max: Radians = 0.5
    per_rank_maximum: bool = False  # True: D_max over each rank's batch, as the original does


MethodConfig = Annotated[
    ArcFaceConfig | CosFaceConfig | ArcDistillConfig | CosDistillConfig | AdaDistillConfig | MarginDistillationConfig,
    Field(discriminator="name"),
]

METHODS_THAT_EMBED = frozenset({"adadistill", "margindistillation"})  # each batch with the teacher
METHODS_WITH_TEACHER = frozenset({"arcdistill", "cosdistill", "adadistill", "margindistillation"})
