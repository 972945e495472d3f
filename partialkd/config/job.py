"""The whole of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from partialkd.config.base import Count, Free, Place, Section, Text
from partialkd.config.data import DataConfig
from partialkd.config.methods import AdaDistillConfig
from partialkd.config.run import DistConfig, HealthConfig, RunConfig
from partialkd.config.teacher import TeacherConfig
from partialkd.config.training import PhaseConfig, StudentConfig


class EvaluateConfig(Section):
    """Verification sets that networks are scored on, and how."""

    sets: tuple[Place, ...] = ()  # InsightFace .bin files; a name without a folder lies in data.path
    fars: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1e-1, 1e-2, 1e-3)
    folds: Annotated[int, Field(ge=2, le=10**6)] = 10
    flip: bool = True  # add the mirrored image's embedding
    batch: Annotated[int, Field(gt=0, le=10**6)] = 128  # images a forward, per rank
    every: Count = 0  # optimiser steps between judgements while training; 0: only where checkpoints are scored
    during: tuple[Text, ...] = ()  # names of the sets that training is judged by, without .bin; (): all
    # What run.keep_best and patience go by: "accuracy", "auc", or "tar@0.001" with one of the fars; mean over the sets.
    metric: Annotated[Text, Field(pattern=r"^(accuracy|auc|tar@[0-9.e+-]+)$")] = "accuracy"
    patience: Count = 0  # judgements in a row without a best one that end a phase; 0: it goes on to its last step

    @property
    def while_training(self) -> EvaluateConfig:
        """The same with the sets of `during` alone."""
        chosen = tuple(path for path in self.sets if not self.during or Path(path).stem in self.during)
        return self.model_copy(update={"sets": chosen})

    @model_validator(mode="after")
    def _judged(self) -> EvaluateConfig:
        names = [Path(path).stem for path in self.sets]
        for name in self.during:
            if name not in names:
                raise ValueError(f"during must name sets ({', '.join(names) or 'none'}), got {name!r}")
        if self.every and not self.sets:
            raise ValueError(f"every must be 0 without sets, got {self.every}")
        if self.patience and not self.every:
            raise ValueError(f"patience must be 0 with every = 0, got {self.patience}")
        _, _, far = self.metric.partition("@")
        if far and not _is_one_of(far, self.fars):
            raise ValueError(f"metric must name one of the fars ({', '.join(f'{x:g}' for x in self.fars)}), got {far}")
        return self


def _is_one_of(far: str, fars: tuple[float, ...]) -> bool:
    try:
        return f"{float(far):g}" in {f"{one:g}" for one in fars}
    except ValueError:
        return False


class Config(Section):
    """The configuration of one run."""

    run: RunConfig
    dist: Free[DistConfig] = DistConfig()
    data: DataConfig
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig
    alone: PhaseConfig | None = None  # the same student without a teacher, for comparison
    evaluate: Free[EvaluateConfig] = EvaluateConfig()
    health: Free[HealthConfig] = HealthConfig()

    @property
    def phases(self) -> dict[str, PhaseConfig]:
        """List the phases of a run, in their order: the name of its folder -> its section."""
        own = {"teacher": self.teacher.train} if self.teacher.source == "train" else {}
        found = {**own, **dict.fromkeys(self.student.names, self.student), "alone": self.alone}
        return {name: phase for name, phase in found.items() if phase is not None}

    @property
    def evaluation(self) -> EvaluateConfig:
        """The section `evaluate` with the place of every set."""
        sets = tuple(
            str(Path(self.data.path) / name) if Path(name).name == name else name for name in self.evaluate.sets
        )
        return self.evaluate.model_copy(update={"sets": sets})

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.run.keep_best and not self.evaluate.sets:
            raise ValueError("run.keep_best must be false without evaluate.sets, got true")
        teacher, taught = self.teacher, self.student.taught_part
        if taught:
            if teacher.source == "none":
                raise ValueError(f'teacher.source must not be "none" with student.{taught}')
            emitted, wanted = teacher.known_dim, self.student.model.embedding_dim
            if teacher.source == "records":
                emitted = self.data.embeddings
            if self.student.same_dim and emitted not in (None, wanted):
                rule = f"must be the teacher's {emitted} (or set teacher.project_to = {wanted})"
                raise ValueError(f"student.model.embedding_dim {rule}, got {wanted}")
        if teacher.noise is not None and self.student.teacher_use != "every batch":
            rule = "must be left out where nothing of the student looks at the teacher's embedding of each image"
            raise ValueError(f"teacher.noise {rule}")
        if teacher.sees == "clean" and self.student.teacher_use != "every batch":
            rule = 'must be "same" where nothing of the student looks at the teacher\'s embedding of each image'
            raise ValueError(f'teacher.sees {rule}, got "clean"')
        if teacher.noise is not None and teacher.noise.on == "logits":
            self._check_noisy_logits()
        self._check_centres()
        self._check_sampler()
        self._check_taps()
        self._check_kept_embeddings()
        for where, phase in (("teacher.train", teacher.train), ("alone", self.alone)):
            if phase is not None and (part := phase.taught_part):
                key, _, name = part.partition(" = ")
                kind = key.partition(".")[0].removesuffix("s")
                raise ValueError(f"{where}.{key} must be a {kind} without teacher, got {name}")
        return self

    def _check_noisy_logits(self) -> None:
        """Refuse noise on logits that nothing has, or that lie in a window of the rows."""
        if self.student.soft_term is None:
            rule = 'must be "embedding" without a term of soft targets (logit_kd, margin_t, gkd) in student.terms'
            raise ValueError(f'teacher.noise.on {rule}, got "logits"')
        if self.student.centres.memory == "host":
            raise ValueError('student.centres.memory must be "device" with teacher.noise.on = "logits", got "host"')

    def _check_centres(self) -> None:
        """Refuse a classifier that nothing would read, or that later generations would not have."""
        method = self.student.method
        if self.teacher.centres == "classifier" and self.student.generations > 1 and method.centre_kind != "trainable":
            rule = f"must be 1 with {method.name}, whose students have no classifier of their own to hand on"
            raise ValueError(f'student.generations {rule} (teacher.centres = "classifier")')
        if self.teacher.centres != "classifier" or not isinstance(method, AdaDistillConfig):
            return
        if self.student.teacher_rows:
            return
        if method.initial_centres != "teacher_means":
            rule = 'must be "teacher_means" with teacher.centres = "classifier"'
            raise ValueError(f'student.method.initial_centres {rule}, got "{method.initial_centres}"')

    def _check_taps(self) -> None:
        """Refuse a teacher without layers where a term looks at them."""
        teacher = self.teacher
        for at, term in enumerate(self.student.terms):
            wanting = f'with student.terms.{at}.name = "{term.name}", which looks at layers of the teacher'
            if term.taps and teacher.source not in ("train", "checkpoint"):
                raise ValueError(f'teacher.source must be "train" or "checkpoint" {wanting}, got "{teacher.source}"')
            if term.taps and teacher.cache is not None:
                raise ValueError(f"teacher.cache must be left out {wanting}, got {teacher.cache!r}")
            if term.taps and teacher.compile:
                raise ValueError(f"teacher.compile must be false {wanting}, got true")

    def _check_sampler(self) -> None:
        """Refuse a sampler that cannot give a term the batches that it needs."""
        phases = {"teacher.train": self.teacher.train, "student": self.student, "alone": self.alone}
        for where, phase in phases.items():
            for at, term in enumerate(phase.terms if phase else ()):
                if term.samplers and self.data.sampler not in term.samplers:
                    fitting = " or ".join(f'"{sampler}"' for sampler in term.samplers)
                    wanting = f'{where}.terms.{at}.name = "{term.name}"'
                    raise ValueError(f'data.sampler must be {fitting} with {wanting}, got "{self.data.sampler}"')

    def _check_kept_embeddings(self) -> None:
        """Refuse changes of images for which no kept embedding was made: those are of plain and mirrored images."""
        teacher, altering = self.teacher, self.data.altering
        if teacher.source == "records" and self.data.embeddings is None:
            raise ValueError('data.embeddings is required with teacher.source = "records"')
        if self.student.teacher_use != "every batch":  # it looks at class means only, never at a batch
            return
        if teacher.source == "records" and self.data.flip:
            raise ValueError('data.flip must be false with teacher.source = "records": no mirrored embedding is there')
        if altering and teacher.sees == "same" and (teacher.cache is not None or teacher.embeddings_alone):
            where = "teacher.cache" if teacher.cache is not None else f'teacher.source = "{teacher.source}"'
            raise ValueError(
                f"data.{altering[0]} must be off with {where}: the teacher's embeddings there are of plain and of "
                f'mirrored images only (on: {", ".join(altering)}), which is what teacher.sees = "clean" takes for all'
            )
