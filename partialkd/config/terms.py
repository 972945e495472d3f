"""One section for each additive term of a loss, told apart by `name`: `student.terms = [{ name = ..., weight = ... }]`.

To add a term: its section here, its class in partialkd/methods/terms (docs/extending.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from partialkd.config.base import (
    Count,
    Moderate,
    NonNegativeFloat,
    Positive,
    Radians,
    Sampler,
    Section,
    Share,
    TeacherUse,
    Text,
    choice_of,
)

PartWeight = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)]  # of a part of a term; 0: without it


@dataclass(frozen=True)
class Taps:
    """Blocks inside student and teacher that a term compares, in pairs, by their names in `named_modules()`."""

    student: tuple[str, ...]  # (): the ends of the network's own `stages`
    teacher: tuple[str, ...]
    stages: tuple[int, ...]  # which of the four these are then
    adapted: bool  # a trained 1x1 convolution brings the student's channels to the teacher's


class TermSection(Section):
    """What every term's section says; `name` is a Literal of the section."""

    teacher_use: ClassVar[TeacherUse]  # nothing, its centres alone, or its embedding of each image as well
    same_dim: ClassVar[bool] = True  # with a teacher: the student's embedding must be as long as the teacher's
    whole_batch: ClassVar[bool] = False  # a micro-step must be the global batch: no accumulation
    samplers: ClassVar[tuple[Sampler, ...]] = ()  # of `data.sampler`, those that give it what it needs; (): any

    name: str
    weight: Moderate = 1.0  # times the term's value, in the loss

    @property
    def least_batch(self) -> int:
        """Images that a global batch must have."""
        return 1

    @property
    def taps(self) -> Taps | None:
        """What it looks at inside both networks; None: their embeddings alone."""
        return None


class EmbeddingTermConfig(TermSection):
    """The student's embedding is drawn to the teacher's of the same image."""

    teacher_use: ClassVar[TeacherUse] = "every batch"

    name: Literal["embedding"]
    distance: Literal["l2", "cosine"] = "l2"  # squared, of the embeddings as they are; 1 - cosine


class RelationalSection(TermSection):
    """What terms say that compare the relations of all images of the batch with the teacher's, of any dimension."""

    teacher_use: ClassVar[TeacherUse] = "every batch"
    same_dim: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = True

    @property
    def least_batch(self) -> int:
        return 2


class RkdTermConfig(RelationalSection):
    """Relational knowledge distillation: distances between images, and angles between three of them."""

    name: Literal["rkd"]
    distance_weight: PartWeight = 25.0
    angle_weight: PartWeight = 50.0  # 0: no angles, whose work grows with the third power of the batch

    @model_validator(mode="after")
    def _something(self) -> RkdTermConfig:
        if self.distance_weight == self.angle_weight == 0:
            raise ValueError("angle_weight must be greater than 0 with distance_weight = 0, got 0")
        return self


class SpTermConfig(RelationalSection):
    """Similarity-preserving distillation: the matrix of inner products of all images."""

    name: Literal["sp"]
    # Each row of the inner products divided by its length, as in the paper; or cosines, as usual for faces.
    similarity: Literal["row_normalised", "cosine"] = "row_normalised"


class CckdTermConfig(RelationalSection):
    """Correlation congruence: a Gaussian kernel of all pairs of images, by its Taylor series."""

    name: Literal["cckd"]
    gamma: Moderate = 0.4
    order: Annotated[int, Field(ge=1, le=10)] = 2  # of the series


class DarkRankTermConfig(RelationalSection):
    """DarkRank: the order in which the teacher ranks each image's nearest others."""

    name: Literal["darkrank"]
    kind: Literal["hard", "soft"] = "hard"  # likelihood of the teacher's order; divergence over all orders
    length: Annotated[int, Field(ge=2, le=64)] = 3  # others ranked, the teacher's nearest; soft: at most 5
    alpha: Moderate = 3.0  # score = -alpha * distance^beta
    beta: Annotated[float, Field(ge=1, le=10)] = 3.0

    @property
    def least_batch(self) -> int:
        return self.length + 1

    @model_validator(mode="after")
    def _few_orders(self) -> DarkRankTermConfig:
        if self.kind == "soft" and self.length > 5:
            raise ValueError(f'length must be at most 5 with kind = "soft", got {self.length}')
        return self


class EkdTermConfig(RelationalSection):
    """Evaluation-oriented distillation: where pairs lie among thresholds of given false positive rates."""

    samplers: ClassVar[tuple[Sampler, ...]] = ("half_pk", "pk")

    name: Literal["ekd"]
    positive_weight: PartWeight = 0.02
    negative_weight: PartWeight = 0.01
    hardest: Positive = 2000  # negative pairs compared, the student's nearest
    temperature: Moderate = 0.01  # of the sigmoid around each threshold, in cosines
    update: Share = 0.01  # share of a batch's thresholds in the moving ones


class TripletTermConfig(RelationalSection):
    """Triplet distillation: the teacher says by which margin a negative must be further off than a positive."""

    samplers: ClassVar[tuple[Sampler, ...]] = ("pk", "half_pk")

    name: Literal["triplet"]
    distance: Literal["l2", "angle"] = "l2"  # squared, of normalised embeddings; radians
    margin_min: Moderate = 0.2
    margin_max: Moderate = 0.5
    semi_hard: Moderate = 0.35  # negatives are further off than the positive by less than this, squared distances

    @model_validator(mode="after")
    def _ordered(self) -> TripletTermConfig:
        if self.margin_max < self.margin_min:
            raise ValueError(f"margin_max must be at least margin_min ({self.margin_min:g}), got {self.margin_max:g}")
        return self


class SoftTargetSection(TermSection):
    """What the terms say that compare the student's distribution over all classes with the teacher's.

    A phase has at most one of them: it goes along with the method's own pass over the centres.
    """

    teacher_use: ClassVar[TeacherUse] = "every batch"
    same_dim: ClassVar[bool] = False

    temperature: Moderate = 4.0  # of both networks' logits
    teacher_scale: Moderate | None = None  # of the teacher's logits, teacher_scale * cosine; None: the method's


class LogitKdTermConfig(SoftTargetSection):
    """Hinton's distillation: the student's distribution over the classes is drawn to the teacher's."""

    name: Literal["logit_kd"]
    margin: Radians = 0.0  # of the student's own logit, scale * cos(angle + margin); 0: plain, as published


class MarginTTermConfig(SoftTargetSection):
    """Distillation of logits with a margin, of both networks ("margin based with T")."""

    name: Literal["margin_t"]
    margin: Radians = 0.5


class GkdTermConfig(SoftTargetSection):
    """Group distillation: only the classes that the student finds probable are drawn to the teacher's one by one."""

    name: Literal["gkd"]
    share: Share = 0.93  # of the student's probability that the primary classes have
    most: Annotated[int, Field(gt=0, le=100_000)] = 1000  # primary classes of an image, beside its own
    beta: NonNegativeFloat = 8.0  # weight of the divergence within the primary classes
    ramp_steps: Count = 0  # optimiser steps over which the term's value grows from 0 to its own


class TappedSection(TermSection):
    """What terms say that look at maps inside both networks: which, from the same places in both."""

    teacher_use: ClassVar[TeacherUse] = "every batch"
    same_dim: ClassVar[bool] = False
    stages: ClassVar[tuple[int, ...]] = (0, 1, 2, 3)
    adapted: ClassVar[bool] = False

    # Names of blocks, as many of each, as `named_modules()` has them; (): the ends of stages that the network names.
    student_taps: tuple[Text, ...] = ()
    teacher_taps: tuple[Text, ...] = ()

    @property
    def taps(self) -> Taps | None:
        return Taps(self.student_taps, self.teacher_taps, self.stages, self.adapted)

    @model_validator(mode="after")
    def _in_pairs(self) -> TappedSection:
        wanted = len(self.student_taps or self.stages)
        if self.taps and len(self.teacher_taps or self.stages) != wanted:
            got = f"{list(self.teacher_taps)}" if self.teacher_taps else f"the {len(self.stages)} of the network itself"
            raise ValueError(f"teacher_taps must be as many as student_taps ({wanted}), got {got}")
        return self


class FitNetsTermConfig(TappedSection):
    """Hints: maps of the student, through a trained adapter, are drawn to the teacher's."""

    stages: ClassVar[tuple[int, ...]] = (1,)
    adapted: ClassVar[bool] = True

    name: Literal["fitnets"]


class AttentionTermConfig(TappedSection):
    """Attention transfer: where the maps are strong, as the teacher's are."""

    name: Literal["attention"]


class NstTermConfig(TappedSection):
    """Neuron selectivity transfer: the distribution of the channels' maps, as the teacher's."""

    stages: ClassVar[tuple[int, ...]] = (3,)

    name: Literal["nst"]
    kernel: Literal["polynomial", "gaussian", "linear"] = "polynomial"


class AngularTermConfig(TappedSection):
    """Angular distillation: the direction of the embedding, and of maps inside through trained adapters."""

    same_dim: ClassVar[bool] = True
    adapted: ClassVar[bool] = True

    name: Literal["angular"]
    layer_weight: PartWeight = 1.0  # of each pair of maps, beside 1 of the embedding; 0: the embedding alone

    @property
    def taps(self) -> Taps | None:
        return super().taps if self.layer_weight else None


class UnifiedTermConfig(TermSection):
    """Hard images are drawn to the teacher's embedding, and images' cosines with a memory bank to the teacher's."""

    teacher_use: ClassVar[TeacherUse] = "every batch"
    whole_batch: ClassVar[bool] = True

    name: Literal["unified"]
    instance_weight: PartWeight = 1.0
    relation_weight: PartWeight = 1.0
    bank: Annotated[int, Field(gt=0, le=10**7)] = 4096  # embeddings of the teacher's that are kept, the newest
    hardest: Positive = 64  # entries of the bank that an image is compared with, those that differ most


if TYPE_CHECKING:
    TermConfig = TermSection
else:  # any of the sections above
    TermConfig = choice_of(TermSection)
