"""Typed, frozen, strict configuration: every key with its type, range, default and unit.

A file is one complete run; reading files and saying what is wrong with them: partialkd.config_files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class DistConfig(Section):
    timeout_s: PositiveFloat = 600.0  # a collective that waits longer than this ends the run
    device: Literal["auto", "cpu", "cuda"] = "auto"


class RunConfig(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # results go to <folder>/<name>
    folder: str = "runs"
    seed: Count = 0
    deterministic: bool = False
    log_every: Positive = 50  # optimiser steps
    checkpoint_every: Count = 1000  # optimiser steps; 0: only at the end of each phase
    keep_checkpoints: Positive = 2
    tensorboard: bool = True


# ---------------------------------------------------------------------------------------------------- data


class ProceduralConfig(Section):
    """Parametric face drawings, made once into `data.path`: training records and a verification set of others."""

    kind: Literal["procedural"]
    identities: Annotated[int, Field(ge=2)] = 400
    images_per_identity: Annotated[int, Field(ge=2)] = 24
    held_out_identities: Annotated[int, Field(ge=2)] = 120
    pairs: Annotated[int, Field(ge=10, multiple_of=2)] = 3000  # half of one person, half of two
    seed: Count = 0


class ArchiveConfig(Section):
    """Real images: `<identity>/<image>` in a .tar.gz or folder, packed once into `data.path`."""

    kind: Literal["archive"]
    images: str  # archive or folder of the training identities
    exclude_identities: str | None = None  # text file, an identity a line: left out of training
    pairs_images: str | None = None  # archive or folder of the evaluated images
    pairs: str | None = None  # CSV `a,b,same` in fold order, paths inside pairs_images
    max_identities: Positive | None = None
    min_images: Positive = 1  # identities with fewer are left out
    max_pairs: Positive | None = None  # evenly from every fold; for short runs


class DataConfig(Section):
    source: Literal["recordio", "folder", "synthetic"] = "recordio"
    path: str  # folder with train.rec, train.idx, property; or <identity>/<image> files
    image_size: Annotated[int, Field(ge=16, le=512)] = 112
    resize: bool = False  # False: a record of another size is an error
    loader: Literal["dali", "jpeg"] = "dali"
    workers: Positive = 2  # decoding threads a rank
    flip: bool = True  # mirror half of the images
    grey: Probability = 0.0  # share of images turned grey (real photographs evaluated in grey)
    prepare: Annotated[ProceduralConfig | ArchiveConfig, Field(discriminator="kind")] | None = None
    synthetic_identities: Positive = 1000  # source = "synthetic" only
    synthetic_images: Positive = 10000


# -------------------------------------------------------------------------------------------------- models


class ModelConfig(Section):
    name: Literal[
        "iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200",
        "mobilefacenet", "mobilefacenet_large", "mobilefacenet_gdc",
        "vit_tiny", "vit_small", "vit_base",
    ]  # fmt: skip
    embedding_dim: Annotated[int, Field(ge=8, le=4096)] = 512
    width: PositiveFloat = 1.0  # multiplies the channel counts; 1.0 is the published network
    depth: PositiveFloat = 1.0  # multiplies the blocks of each stage, at least one
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    channels_last: bool = False
    activation_checkpointing: bool = False


class InputConfig(Section):
    """What a foreign network expects: pixels 0..255 become (pixel - mean) / std in this order and size."""

    size: Annotated[int, Field(ge=16, le=512)] = 112
    mean: float = 127.5
    std: PositiveFloat = 127.5
    colour: Literal["rgb", "bgr"] = "rgb"


# ------------------------------------------------------------------------------------------------- methods


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

METHODS_WITH_TEACHER = frozenset({"arcdistill", "cosdistill", "adadistill", "margindistillation"})


class CentresConfig(Section):
    sample_rate: Share = 1.0  # share of the rows compared with in a step
    store: Literal["fp32", "bf16"] = "fp32"
    backend: Literal["chunked", "reference"] = "chunked"
    chunk_rows: Positive | None = None  # rows a chunk of the sweep; None: from the batch size


# ------------------------------------------------------------------------------------------------ training


class OptimizerConfig(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)  # adamw
    eps: PositiveFloat = 1e-8  # adamw
    weight_decay: NonNegativeFloat = 5e-4
    clip_norm: NonNegativeFloat = 5.0  # 0: no clipping; the student's gradient, centres are not part of it


class ScheduleConfig(Section):
    """Factor on the learning rate, per optimiser step. Milestones in zero-based epochs or in steps."""

    name: Literal["constant", "step", "poly", "cosine"] = "poly"
    warmup_steps: Count = 0
    milestone_epochs: tuple[Positive, ...] = ()
    milestone_steps: tuple[Positive, ...] = ()
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1  # step
    power: PositiveFloat = 2.0  # poly
    final: Probability = 0.0  # cosine, poly: factor reached at the end


class PhaseConfig(Section):
    """One network trained once: the teacher, the distilled student, or the student alone."""

    model: ModelConfig
    method: MethodConfig
    centres: CentresConfig = CentresConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    epochs: PositiveFloat
    max_steps: Positive | None = None  # optimiser steps; ends a run early (the schedule keeps its length)
    global_batch: Positive  # images an optimiser step, over all ranks and micro-steps
    accumulation: Positive = 1  # micro-steps an optimiser step
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    sync_batchnorm: bool = False
    freeze_batchnorm: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> PhaseConfig:
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
        return self


class TeacherConfig(Section):
    """Where the teacher comes from: trained first by this run, a state_dict of our models, or an ONNX file."""

    source: Literal["none", "train", "checkpoint", "onnx"] = "none"
    path: str | None = None  # checkpoint (.pt, .pth, .safetensors) or .onnx
    model: ModelConfig | None = None  # source = "checkpoint"; not needed for a file that describes its network
    input: InputConfig = InputConfig()  # source = "checkpoint" or "onnx"
    embedding_dim: Positive | None = None  # source = "onnx": checked against what the file emits
    project_to: Positive | None = None  # one fixed orthogonal projection of embeddings and centres alike
    centres: Literal["means", "classifier"] = "means"  # of the fixed centres and of AdaDistill's start
    classifier: str | None = None  # centres = "classifier": file with the rows (C, D)
    label_map: str | None = None  # text file: line k holds the class id of row k, or -1; "identity": row k is class k
    train: PhaseConfig | None = None  # source = "train"; without effect with another source

    @property
    def known_dim(self) -> int | None:
        """Dimension of its embeddings as far as the configuration says; None: the file does."""
        model = {"train": self.train and self.train.model, "checkpoint": self.model}.get(self.source)
        return self.project_to or (model.embedding_dim if model else self.embedding_dim)

    @model_validator(mode="after")
    def _complete(self) -> TeacherConfig:
        needs = {"train": ["train"], "checkpoint": ["path", "model"], "onnx": ["path", "embedding_dim"], "none": []}
        if self.path is not None and self.path.endswith(".safetensors"):
            needs["checkpoint"] = ["path"]  # such a file may describe its network itself
        for key in needs[self.source]:
            if getattr(self, key) is None:
                raise ValueError(f'{key} is required with source = "{self.source}"')
        if self.centres == "classifier" and self.source != "train":  # a teacher trained here brings its own
            for key in ("classifier", "label_map"):
                if getattr(self, key) is None:
                    raise ValueError(f'{key} is required with centres = "classifier"')
        return self


class EvaluateConfig(Section):
    sets: tuple[str, ...] = ()  # InsightFace .bin files; a name without a folder lies in data.path
    fars: tuple[Share, ...] = (1e-1, 1e-2, 1e-3)
    folds: Annotated[int, Field(ge=2)] = 10
    flip: bool = True  # add the mirrored image's embedding
    batch: Positive = 128  # images a forward, per rank


class Config(Section):
    run: RunConfig
    dist: DistConfig = DistConfig()
    data: DataConfig
    teacher: TeacherConfig = TeacherConfig()
    student: PhaseConfig
    alone: PhaseConfig | None = None  # the same student without a teacher, for comparison
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def evaluation(self) -> EvaluateConfig:
        """`evaluate` with the place of every set."""
        sets = tuple(
            str(Path(self.data.path) / name) if Path(name).name == name else name for name in self.evaluate.sets
        )
        return self.evaluate.model_copy(update={"sets": sets})

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        method, teacher = self.student.method.name, self.teacher
        if method in METHODS_WITH_TEACHER:
            if teacher.source == "none":
                raise ValueError(f'teacher.source must not be "none" with student.method.name = "{method}"')
            emitted, wanted = teacher.known_dim, self.student.model.embedding_dim
            if emitted not in (None, wanted):
                rule = f"must be the teacher's {emitted} (or set teacher.project_to = {wanted})"
                raise ValueError(f"student.model.embedding_dim {rule}, got {wanted}")
        for where, phase in (("teacher.train", teacher.train), ("alone", self.alone)):
            if phase is not None and phase.method.name in METHODS_WITH_TEACHER:
                raise ValueError(f"{where}.method.name must be a method without teacher, got {phase.method.name!r}")
        return self
