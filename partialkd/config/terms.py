"""One section for each additive term of a loss, told apart by `name`: `student.terms = [{ name = ..., weight = ... }]`.

To add a term: its section here, its class in partialkd/methods/terms (docs/extending.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from partialkd.config.base import Moderate, Sampler, Section, TeacherUse, choice_of


class TermSection(Section):
    """What every term's section says; `name` is a Literal of the section."""

    teacher_use: ClassVar[TeacherUse]  # nothing, its centres alone, or its embedding of each image as well
    same_dim: ClassVar[bool] = True  # with a teacher: the student's embedding must be as long as the teacher's
    whole_batch: ClassVar[bool] = False  # a micro-step must be the global batch: no accumulation
    samplers: ClassVar[tuple[Sampler, ...]] = ()  # of `data.sampler`, those that give it what it needs; (): any

    name: str
    weight: Moderate = 1.0  # times the term's value, in the loss


class EmbeddingTermConfig(TermSection):
    """The student's embedding is drawn to the teacher's of the same image."""

    teacher_use: ClassVar[TeacherUse] = "every batch"

    name: Literal["embedding"]
    distance: Literal["l2", "cosine"] = "l2"  # squared, of the embeddings as they are; 1 - cosine


if TYPE_CHECKING:
    TermConfig = TermSection
else:  # any of the sections above
    TermConfig = choice_of(TermSection)
