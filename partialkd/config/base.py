"""What every section of the configuration is made of, and how a field says what a resumed run may change.

`Free[int]` is an int that a resumed run may have otherwise: how and where it runs, not what it computes. Fields that
are not marked must stay as they were. What follows from the marks: partialkd.config.resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


class OnResume(Enum):
    """What a resumed run may do with a field; without a mark it must keep the value."""

    FREE = "may change"
    LENGTH = "must keep, though no checkpoint depends on it"


@dataclass(frozen=True)
class Before:
    """The value with which runs and checkpoints from before the field existed go on."""

    value: Any


Free = Annotated[T, OnResume.FREE]
Length = Annotated[T, OnResume.LENGTH]

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
