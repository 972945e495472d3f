"""One section for each method, told apart by `name`; it says where the method's centres come from and what it wants.

To add a method: its section here, its class in partialkd/methods (docs/extending.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from partialkd.config.base import Before, Moderate, Radians, Section, TeacherUse, choice_of
from partialkd.config.margins import AdaFaceMarginConfig, MarginSection, NamedMargin

CentreKind = Literal["trainable", "fixed", "ema"]


class CombinedMargin(Section):
    """Target cosine becomes cos(m1 * theta + m2) - m3 (ArcFace, section 3 "combined margin")."""

    m1: Annotated[float, Field(ge=1, le=4)] = 1.0
    m2: Radians = 0.5
    m3: Annotated[float, Field(ge=0, le=1)] = 0.0
    gradient: Literal["true", "straight_through"] = "true"


class MethodSection(Section):
    """What every method's section says; `name` is a Literal of the section."""

    centre_kind: ClassVar[CentreKind]  # moved by gradient, by nobody, or by a moving average of teacher embeddings
    teacher_use: ClassVar[TeacherUse]  # nothing, its centres alone, or its embedding of each image as well
    same_dim: ClassVar[bool] = True  # with a teacher: the student's embedding must be as long as the teacher's

    name: str
    scale: Moderate = 64.0

    @property
    def named_margin(self) -> MarginSection | None:
        """The margin that is a section of its own; None where it is numbers of the method."""
        margin = getattr(self, "margin", None)
        return margin if isinstance(margin, MarginSection) else None

    @property
    def bends(self) -> bool:
        """Whether the margin changes the logits of negatives, within the sweep."""
        return self.named_margin is not None and self.named_margin.bends


def _without_geometry(margin: MarginSection) -> MarginSection:
    if isinstance(margin, AdaFaceMarginConfig) and margin.geometry:
        raise ValueError(f"geometry must be 0 but with adadistill, got {margin.geometry:g}")
    return margin


def _margin_kind(margin: Any) -> str:
    return "<named>" if isinstance(margin, dict | MarginSection) else "<number>"


MarginAlone = Annotated[NamedMargin, AfterValidator(_without_geometry)]  # where no teacher sees each image


class ArcFaceConfig(MethodSection):
    centre_kind: ClassVar[CentreKind] = "trainable"
    teacher_use: ClassVar[TeacherUse] = "none"

    name: Literal["arcface"]
    margin: CombinedMargin = CombinedMargin()


class CosFaceConfig(MethodSection):
    centre_kind: ClassVar[CentreKind] = "trainable"
    teacher_use: ClassVar[TeacherUse] = "none"

    name: Literal["cosface"]
    margin: Annotated[float, Field(ge=0, le=1)] = 0.35


class ArcDistillConfig(MethodSection):
    centre_kind: ClassVar[CentreKind] = "fixed"
    teacher_use: ClassVar[TeacherUse] = "centres"

    name: Literal["arcdistill"]
    margin: Radians = 0.45


class CosDistillConfig(MethodSection):
    centre_kind: ClassVar[CentreKind] = "fixed"
    teacher_use: ClassVar[TeacherUse] = "centres"

    name: Literal["cosdistill"]
    margin: Annotated[float, Field(ge=0, le=1)] = 0.35


class TrainedCentresConfig(MethodSection):
    """Margin softmax over trained centres, with a named margin."""

    centre_kind: ClassVar[CentreKind] = "trainable"
    teacher_use: ClassVar[TeacherUse] = "none"

    name: Literal["trained_centres"]
    margin: MarginAlone


class TeacherCentresConfig(MethodSection):
    """Margin softmax over the teacher's centres, with a named margin."""

    centre_kind: ClassVar[CentreKind] = "fixed"
    teacher_use: ClassVar[TeacherUse] = "centres"

    name: Literal["teacher_centres"]
    margin: MarginAlone


class AdaDistillConfig(MethodSection):
    centre_kind: ClassVar[CentreKind] = "ema"
    teacher_use: ClassVar[TeacherUse] = "every batch"

    name: Literal["adadistill"]
    kind: Literal["arc", "cos"] = "arc"  # of a margin that is a number
    # radians for arc, cosine for cos; or a margin with a name of its own
    margin: Annotated[
        Annotated[Radians, Tag("<number>")] | Annotated[NamedMargin, Tag("<named>")], Discriminator(_margin_kind)
    ] = 0.45
    weighted: bool = True  # alpha' (True) or alpha (False)
    initial_centres: Literal["teacher_means", "random", "exclude"] = "teacher_means"
    first_sight: bool = True  # a class seen first takes the mean of its teacher embeddings
    # How a is clipped where cosines are negative: as the authors' code does, or as their poster prints the formula
    # (partialkd/centres/moving_average.py). Runs from before there was a choice go on as they began.
    clip: Annotated[Literal["code", "poster"], Before("poster")] = "code"
    renormalise: bool = False  # bring stored centres back to length one after each update

    @model_validator(mode="after")
    def _cosine_margin(self) -> AdaDistillConfig:
        if self.kind == "cos" and isinstance(self.margin, float) and self.margin > 1:
            raise ValueError(f'margin must be at most 1 with kind = "cos", got {self.margin}')
        if self.kind == "cos" and (margin := self.named_margin):
            raise ValueError(f'kind must be left out with margin.name = "{margin.name}", got "cos"')
        return self


class MarginDistillationConfig(MethodSection):
    centre_kind: ClassVar[CentreKind] = "fixed"
    teacher_use: ClassVar[TeacherUse] = "every batch"

    name: Literal["margindistillation"]
    margin_min: Radians = 0.2
    margin_max: Radians = 0.5
    per_rank_maximum: bool = False  # True: D_max over each rank's batch, as the original does


if TYPE_CHECKING:
    MethodConfig = MethodSection
else:  # any of the sections above
    MethodConfig = choice_of(MethodSection)
