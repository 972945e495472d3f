"""What every section of the configuration is made of, and how a field says what a resumed run may change.

`Free[int]` is an int that a resumed run may have otherwise: how and where it runs, not what it computes. Fields that
are not marked must stay as they were. What follows from the marks: partialkd.config.resume.

Every number has bounds within which nothing overflows. `Text` takes what TOML reads as a number or a date for what it
looks like; `Place` is the path of a file or folder, in which `~` and `$HOME` are replaced as a shell would.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

T = TypeVar("T")


class OnResume(Enum):
    """What a resumed run may do with a field; without a mark it must keep the value."""

    FREE = "may change"
    LENGTH = "may grow where that is asked for, and no checkpoint depends on it"


@dataclass(frozen=True)
class Before:
    """The value with which runs and checkpoints from before the field existed go on."""

    value: Any


Free = Annotated[T, OnResume.FREE]
Length = Annotated[T, OnResume.LENGTH]


def _least(least: float) -> AfterValidator:
    """A lower bound of what is greater than 0 in any case, for which the message says just that."""

    def check(value: float) -> float:
        if value < least:
            raise ValueError(f"must be at least {least:g}")
        return value

    return AfterValidator(check)


MOST, LEAST = 1e30, 1e-30  # of floats: float32 holds both, and the inverse of each
Positive = Annotated[int, Field(gt=0, le=10**12)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Seed = Annotated[int, Field(ge=0, le=18 * 10**12)]  # a million times this, for one seed per rank, fits into 64 bits
PositiveFloat = Annotated[float, Field(gt=0, le=MOST, allow_inf_nan=False), _least(LEAST)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]
Moderate = Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False), _least(1e-12)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1), _least(1e-6)]
Radians = Annotated[float, Field(ge=0, lt=3.1416)]


def expanded(path: str) -> str:
    """The path with `~`, `$NAME` and `${NAME}` replaced; ValueError where a variable is not set."""
    if "\0" in path:
        raise ValueError("must not hold the character of value 0")
    unset = [name for name in re.findall(r"\$\{?(\w+)\}?", path) if name not in os.environ]
    if unset:
        raise ValueError(f"must name environment variables that are set, ${unset[0]} is not")
    return os.path.expanduser(os.path.expandvars(path))


def _as_text(value: Any) -> Any:
    """A number or a date where text is meant (`name = 20241129`), as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.isoformat() if isinstance(value, date) else value


Text = Annotated[str, BeforeValidator(_as_text)]
Place = Annotated[str, BeforeValidator(_as_text), AfterValidator(expanded)]


TeacherUse = Literal["none", "centres", "every batch"]  # from nothing to its embedding of each image
# `data.sampler`: each record once; each identity alike; P x K batches; batches half shuffled, half P x K
Sampler = Literal["shuffle", "balanced", "pk", "half_pk"]


class Section(BaseModel):
    """A table of the configuration: frozen, unknown keys forbidden, no type coercion but int -> float."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", protected_namespaces=())


def choice_of(base: type[Section]) -> Any:
    """The annotation of any section derived from `base`, told apart by their `name`."""
    sections = leaves(base)
    return Annotated[Union[tuple(sections)], Field(discriminator="name")] if len(sections) > 1 else sections[0]  # noqa: UP007


def leaves(base: type[Section]) -> list[type[Section]]:
    """The sections derived from `base` that no other derives from, in the order in which they were declared."""
    return [leaf for section in base.__subclasses__() for leaf in leaves(section) or [section]]
