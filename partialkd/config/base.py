"""What every section of the configuration is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Radians = Annotated[float, Field(ge=0, lt=3.1416)]


class Section(BaseModel):
    """A table of the configuration: frozen, unknown keys forbidden, no type coercion but int -> float."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", protected_namespaces=())
