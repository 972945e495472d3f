"""One network trained once: model, method, centres, optimiser, schedule."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from partialkd.config.base import (
    Before,
    Count,
    Free,
    Length,
    Moderate,
    NonNegativeFloat,
    Place,
    Positive,
    PositiveFloat,
    Probability,
    Section,
    Share,
    TeacherUse,
)
from partialkd.config.methods import MarginDistillationConfig, MethodConfig, MethodSection
from partialkd.config.models import ModelConfig
from partialkd.config.terms import SoftTargetSection, TermConfig, TermSection


def sampled_share(rate: float) -> Fraction:
    """m / T, what a sample_rate amounts to: a step takes m of every T blocks of neighbouring rows."""
    return Fraction(rate).limit_denominator(max(20, 2 * math.ceil(1 / rate)))


class CentresConfig(Section):
    """How class centres are sampled, stored and multiplied with."""

    sample_rate: Share = 1.0  # share of the rows compared with in a step, and the batch's own classes
    importance_correction: bool = False  # a sampled sum over other classes is scaled up to what all would give
    # Rows of the centres: bf16 and int8 (with a float32 scale per row) are rounded stochastically where they move by
    # steps. int8 is for centres that no gradient moves.
    store: Free[Literal["fp32", "bf16", "int8"]] = "fp32"
    moments: Free[Literal["fp32", "bf16"]] = "fp32"  # of trainable centres' optimiser; bf16: rounded stochastically
    second_moment: Literal["full", "row"] = "full"  # adamw; row: one number per row, the mean square of its gradient
    # Where rows and moments are kept. host: in the memory of the host, with the rows of a step and of the next one on
    # the device; for samples of less than half (a sample_rate under 0.487).
    memory: Free[Literal["device", "host"]] = "device"
    # Of the sweep. graphed: chunked, its sums over all rows started as one CUDA graph; gemm: matrix products with one
    # Triton kernel between; fused: Triton kernels alone; all CUDA only; reference: for tests; auto: chunked, on CUDA
    # whichever of these was fastest and agreed with chunked when the shape first came up.
    backend: Free[Literal["chunked", "graphed", "gemm", "fused", "auto", "reference"]] = "chunked"
    # Operands of the sweep's matrix products, whose sums are float32 in any case. auto: bf16 on CUDA, fp32 on the CPU;
    # in the Triton kernels as the store.
    products: Free[Literal["auto", "fp32", "bf16"]] = "auto"
    chunk_rows: Free[Positive | None] = None  # rows a chunk of the sweep; None: from the batch size
    # Centres to start from: a run's folder, a checkpoint, a file with one matrix (C, D), or arcface_torch's folder. On
    # resume what is in it and in the label map is compared, not where they lie.
    weights: Annotated[Free[Place | None], Before(None)] = None
    # Which row is whose: "identity" (row k is class k), "names" (the identities of both runs, by name), or a text file
    # of lines `row<TAB>class id or name in this run`, -1: a row that is not used.
    label_map: Free[Place | None] = None
    # Trainable centres of identities that no row is of: class means of the network over their images, or random.
    new_identities: Annotated[Literal["means", "random"], Before("means")] = "means"

    @model_validator(mode="after")
    def _mapped(self) -> CentresConfig:
        if self.weights is not None and self.label_map is None:
            raise ValueError('label_map is required with weights: "identity", "names" or a file')
        if self.weights is None and self.label_map is not None:
            raise ValueError(f'label_map must be left out without weights, got "{self.label_map}"')
        return self

    @model_validator(mode="after")
    def _sampled_from_host(self) -> CentresConfig:
        share = sampled_share(self.sample_rate)
        if self.memory == "host" and 2 * share >= 1:
            takes = f"sample_rate = {self.sample_rate:g}, which takes {share} of the rows in a step"
            raise ValueError(f'memory must be "device" with {takes}: two steps take them all, got "host"')
        return self

    @model_validator(mode="after")
    def _exact_reference(self) -> CentresConfig:
        if self.backend == "reference" and self.products == "bf16":
            raise ValueError('products must be "auto" or "fp32" with backend = "reference", got "bf16"')
        return self


RateFactor = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False), Before(1.0)]


class RateFactors(Section):
    """Factors on the learning rate, by group; 0: the group does not move at all."""

    backbone: RateFactor = 1.0  # the network but for its head
    head: RateFactor = 1.0  # from the last maps to the embedding: its linear layers and their normalisation
    centres: RateFactor = 1.0  # trainable ones


class OptimizerConfig(Section):
    """What moves the student, and trained centres with it."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Moderate = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)  # adamw
    eps: PositiveFloat = 1e-8  # adamw
    weight_decay: Annotated[float, Field(ge=0, le=10_000)] = 5e-4
    clip_norm: NonNegativeFloat = 5.0  # 0: no clipping; the student's gradient, centres are not part of it
    lr_factors: RateFactors = RateFactors()


class ScheduleConfig(Section):
    """Factor on the learning rate, per optimiser step. Milestones in zero-based epochs or in steps."""

    name: Literal["constant", "step", "poly", "cosine"] = "poly"
    warmup_steps: Count = 0
    milestone_epochs: tuple[Positive, ...] = ()
    milestone_steps: tuple[Positive, ...] = ()
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1  # step
    power: Moderate = 2.0  # poly
    final: Probability = 0.0  # cosine, poly: factor reached at the end


class PhaseConfig(Section):
    """One network trained once: the teacher, the distilled student, or the student alone."""

    model: ModelConfig
    method: MethodConfig
    centres: CentresConfig = CentresConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    terms: Annotated[tuple[TermConfig, ...], Before(())] = ()  # added to the method's loss, each times its weight
    # The network to start from: a file of weights (.safetensors, .pt, .pth, .h5), a checkpoint or a run's folder. What
    # is in it is compared on resume, not where it lies.
    weights: Annotated[Free[Place | None], Before(None)] = None
    freeze_steps: Annotated[Count, Before(0)] = (
        0  # first optimiser steps in which centres move and the network does not
    )
    # Moving average of the network, a <- d a + (1 - d) w after each optimiser step: it is what is scored and exported.
    ema_decay: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, Before(None)] = None
    epochs: Length[Annotated[float, Field(gt=0, le=1e6)]]
    max_steps: Length[Positive | None] = None  # optimiser steps; ends a run early (the schedule keeps its length)
    global_batch: Annotated[int, Field(gt=0, le=10**8)]  # images per optimiser step, over all ranks and micro-steps
    accumulation: Free[Annotated[int, Field(gt=0, le=10**6)]] = 1  # micro-steps per optimiser step
    zero_stage: Free[Annotated[int, Field(ge=0, le=3)]] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    sync_batchnorm: bool = False
    freeze_batchnorm: bool = False
    compile: Free[bool] = False  # torch.compile of the network in training, at ZeRO stages 0-2; differs by rounding

    @property
    def teacher_use(self) -> TeacherUse:
        """What the method or a term of it asks of a teacher, whichever asks for most."""
        uses = [self.method.teacher_use, *(term.teacher_use for term in self.terms)]
        return max(uses, key=get_args(TeacherUse).index)

    @property
    def taught_part(self) -> str | None:
        """The key of what asks for a teacher, its name included; None where nothing does."""
        parts: dict[str, MethodSection | TermSection] = {"method": self.method}
        parts |= {f"terms.{at}": term for at, term in enumerate(self.terms)}
        wanting = (f'{key}.name = "{part.name}"' for key, part in parts.items() if part.teacher_use != "none")
        return next(wanting, None)

    @property
    def same_dim(self) -> bool:
        """Whether the student's embedding must be as long as the teacher's: it is compared with it, or its centres."""
        parts: list[MethodSection | TermSection] = [self.method, *self.terms]
        return any(part.same_dim for part in parts if part.teacher_use != "none")

    @property
    def soft_term(self) -> SoftTargetSection | None:
        """The term that compares distributions over all classes."""
        return next((term for term in self.terms if isinstance(term, SoftTargetSection)), None)

    @property
    def teacher_rows(self) -> bool:
        """Whether a term compares with the teacher's centres, and the method's are others."""
        return self.method.centre_kind != "fixed" and self.soft_term is not None

    @model_validator(mode="after")
    def _one_with_soft_targets(self) -> PhaseConfig:
        soft = [(at, term.name) for at, term in enumerate(self.terms) if isinstance(term, SoftTargetSection)]
        for at, name in soft[1:]:
            rule = f'must be left out beside terms.{soft[0][0]}.name = "{soft[0][1]}": the two would share one pass'
            raise ValueError(f'terms.{at}.name {rule} over the centres, got "{name}"')
        margin = self.method.named_margin
        if soft and margin and margin.bends:
            rule = f'must be left out with a margin that bends negatives, as method.margin.name = "{margin.name}" does'
            raise ValueError(f'terms.{soft[0][0]}.name {rule}, got "{soft[0][1]}"')
        if self.teacher_rows and self.centres.memory == "host":
            rule = f'must be "device" with terms.{soft[0][0]}.name = "{soft[0][1]}" and {self.method.name}'
            raise ValueError(
                f"centres.memory {rule}: the teacher's centres are others than the student's, got \"host\""
            )
        return self

    @model_validator(mode="after")
    def _compilable(self) -> PhaseConfig:
        """Refuse what hooks into the network's layers, or leaves it in their middle: it cannot be compiled as one."""
        for key, value, hinders in (
            ("zero_stage", "3", self.zero_stage == 3),
            ("sync_batchnorm", "true", self.sync_batchnorm),
            ("model.activation_checkpointing", "true", self.model.activation_checkpointing),
        ):
            if self.compile and hinders:
                raise ValueError(f"compile must be false with {key} = {value}, got true")
        tapped = [f'terms.{at}.name = "{term.name}"' for at, term in enumerate(self.terms) if term.taps]
        for key, given in (
            ("compile", self.compile),
            ("model.activation_checkpointing", self.model.activation_checkpointing),
        ):
            if given and tapped:
                raise ValueError(
                    f"{key} must be false with {tapped[0]}, which hooks into the network's layers, got true"
                )
        return self

    @model_validator(mode="after")
    def _startable(self) -> PhaseConfig:
        """Refuse to start with, or to hold still, what would then be of no use."""
        kind, name = self.method.centre_kind, self.method.name
        if self.centres.weights is not None and kind == "fixed":
            raise ValueError(f"centres.weights must be left out with {name}, whose centres are the teacher's")
        started = self.centres.weights is not None and kind == "trainable"
        if started and self.weights is None and self.centres.new_identities == "means":
            rule = 'must be "random" without weights: means of a network that knows nothing are of no use'
            raise ValueError(f'centres.new_identities {rule}, got "means"')
        if self.freeze_steps and self.weights is None:
            raise ValueError(f"freeze_steps must be 0 without weights, got {self.freeze_steps}")
        if self.freeze_steps and kind == "fixed":
            raise ValueError(f"freeze_steps must be 0 with {name}: nothing would move, got {self.freeze_steps}")
        if self.freeze_steps and any(term.taps is not None for term in self.terms):
            rule = "must be 0 with terms that look inside the network, which train adapters in it"
            raise ValueError(f"freeze_steps {rule}, got {self.freeze_steps}")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> PhaseConfig:
        trainable = self.method.centre_kind == "trainable"
        if trainable and self.centres.store == "int8":
            raise ValueError(
                f'centres.store must be "fp32" or "bf16" with {self.method.name}, whose centres are trained, got "int8"'
            )
        if self.global_batch % self.accumulation:
            raise ValueError(
                f"global_batch must be divisible by accumulation ({self.accumulation}), got {self.global_batch}"
            )
        if self.schedule.milestone_epochs and self.schedule.milestone_steps:
            steps = list(self.schedule.milestone_steps)
            raise ValueError(f"schedule.milestone_steps must be empty beside milestone_epochs, got {steps}")
        whole = isinstance(self.method, MarginDistillationConfig) and not self.method.per_rank_maximum
        if whole and self.accumulation > 1:  # D_max is taken over the global batch, which must be there at once
            rule = "must be 1 with margindistillation (unless method.per_rank_maximum = true)"
            raise ValueError(f"accumulation {rule}, got {self.accumulation}")
        margin = self.method.named_margin
        if margin and margin.whole_batch and self.accumulation > 1:
            raise ValueError(f"accumulation must be 1 with method.margin.{margin.whole_batch}, got {self.accumulation}")
        for at, term in enumerate(self.terms):
            if term.whole_batch and self.accumulation > 1:
                rule = f'must be 1 with terms.{at}.name = "{term.name}", which looks at the global batch at once'
                raise ValueError(f"accumulation {rule}, got {self.accumulation}")
            if self.global_batch < term.least_batch:
                rule = f'must be at least {term.least_batch} with terms.{at}.name = "{term.name}"'
                raise ValueError(f"global_batch {rule}, got {self.global_batch}")
        return self


class StudentConfig(PhaseConfig):
    """The student, and how often it is trained anew with the one before as its teacher."""

    # Students in a chain: the teacher teaches the first, each the next, and the last is the student (born-again
    # networks, Furlanello et al., 2018). Every one starts from random numbers of its own.
    generations: Annotated[Annotated[int, Field(ge=1, le=100)], Before(1)] = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Name the phases that train it, in their order: "generation_1", ..., "student"."""
        return (*(f"generation_{number}" for number in range(1, self.generations)), "student")

    @model_validator(mode="after")
    def _born_again(self) -> StudentConfig:
        if self.generations == 1:
            return self
        if self.taught_part is None:
            rule = f"must be 1 with {self.method.name} and no term that asks for a teacher: nothing would be handed on"
            raise ValueError(f"generations {rule}, got {self.generations}")
        for key, given in (("weights", self.weights), ("centres.weights", self.centres.weights)):
            if given is not None:
                rule = f"must be 1 with {key}: every generation starts from random numbers"
                raise ValueError(f"generations {rule}, got {self.generations}")
        return self
