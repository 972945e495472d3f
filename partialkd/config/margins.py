"""One section for each margin that is more than a number, told apart by `name`: `margin = { name = "adaface" }`.

A method that takes one says whose centres it is taken over (partialkd.config.methods). To add a margin: its section
here, its class in partialkd/methods/margins. Defaults are those of the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from partialkd.config.base import Count, Radians, Section, choice_of

Cosine = Annotated[float, Field(ge=0, le=1)]
Norm = Annotated[float, Field(gt=0, le=1e6)]


class MarginSection(Section):
    """What every margin's section says; `name` is a Literal of the section."""

    bends: ClassVar[bool] = False  # changes the logits of negatives too, within the sweep

    name: str

    @property
    def numbers_sent(self) -> int:
        """Numbers per sample that collectives of its own take to each other rank."""
        return 0

    @property
    def whole_batch(self) -> str | None:
        """The setting for which a micro-step must be the global batch, so that there is no accumulation; None: none."""
        return None


class AdaFaceMarginConfig(MarginSection):
    """AdaFace (arXiv:2204.00964): by the norm of the embedding, standardised with moving statistics of the batch."""

    name: Literal["adaface"]
    m: Cosine = 0.4
    h: Annotated[float, Field(ge=0, le=10)] = 0.333  # share of m that one deviation of the norm is worth
    t_alpha: Annotated[float, Field(gt=0, le=1)] = 0.01  # share of a batch in the moving mean and deviation
    # The geometry-aware part, of adadistill alone: the margin rises where the student is further from the teacher's
    # embedding than the class's centre is. 0: none; the publication's weight times k is 3.
    geometry: Annotated[float, Field(ge=0, le=100)] = 0.0
    geometry_warmup_steps: Count = 0  # optimiser steps in which it grows to that

    @property
    def numbers_sent(self) -> int:
        return 1 + (self.geometry > 0)


class MagFaceMarginConfig(MarginSection):
    """MagFace (arXiv:2103.06627): an angle that grows with the embedding's norm, and a regulariser of the norm."""

    name: Literal["magface"]
    l_a: Norm = 10.0  # norms are taken as at least this
    u_a: Norm = 110.0  # and at most this
    l_margin: Radians = 0.45  # at l_a
    u_margin: Radians = 0.8  # at u_a
    lambda_g: Annotated[float, Field(ge=0, le=1e6)] = 35.0  # weight of the regulariser
    easy_margin: bool = True  # no margin where the cosine is negative, as in the authors' code

    @model_validator(mode="after")
    def _ordered(self) -> MagFaceMarginConfig:
        if self.u_a <= self.l_a:
            raise ValueError(f"u_a must be greater than l_a ({self.l_a:g}), got {self.u_a:g}")
        if self.u_margin < self.l_margin:
            raise ValueError(f"u_margin must be at least l_margin ({self.l_margin:g}), got {self.u_margin:g}")
        return self


class Elastic(Section):
    """ElasticFace (arXiv:2109.09416): drawn for each sample from a normal distribution."""

    std: Annotated[float, Field(ge=0, le=1)] = 0.0125
    plus: bool = False  # ElasticFace+: of the drawn margins the larger go to the samples of the lower cosines

    @property
    def numbers_sent(self) -> int:
        return int(self.plus)

    @property
    def whole_batch(self) -> str | None:
        return "plus = true" if self.plus else None


class ElasticArcMarginConfig(Elastic, MarginSection):
    """The drawn margin is an angle."""

    name: Literal["elastic_arc"]
    m: Radians = 0.5  # mean


class ElasticCosMarginConfig(Elastic, MarginSection):
    """The drawn margin is a cosine."""

    name: Literal["elastic_cos"]
    m: Cosine = 0.35  # mean


class CurricularMarginConfig(MarginSection):
    """CurricularFace (arXiv:2004.00288): ArcFace's, and hard negatives weighted by a moving mean of target cosines."""

    bends: ClassVar[bool] = True

    name: Literal["curricular"]
    m: Radians = 0.5
    t_alpha: Annotated[float, Field(gt=0, le=1)] = 0.01  # share of a batch in the moving mean

    @property
    def numbers_sent(self) -> int:
        return 2  # a sum over ranks is twice a gather


class SphereMarginConfig(MarginSection):
    """SphereFace (arXiv:1704.08063) with normalised embeddings, as in SphereFace-R (arXiv:2109.05565)."""

    name: Literal["sphere"]
    m: Annotated[float, Field(ge=1, le=4)] = 1.5  # times the angle
    gradient: Literal["true", "straight_through"] = "true"
    # Annealing of SphereFace's code: the mean of margin and plain cosine, the latter lambda times as heavy, lambda =
    # max(lambda_min, base (1 + gamma step)^-power). base = lambda_min = 0: none; theirs are 1000 and 5.
    base: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    gamma: Annotated[float, Field(ge=0, le=1e6)] = 0.12
    power: Annotated[float, Field(ge=0, le=10)] = 1.0
    lambda_min: Annotated[float, Field(ge=0, le=1e6)] = 0.0


if TYPE_CHECKING:
    NamedMargin = MarginSection
else:  # any of the sections above
    NamedMargin = choice_of(MarginSection)
