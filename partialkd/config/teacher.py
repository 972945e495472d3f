"""Where the teacher and its centres come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from partialkd.config.base import Before, Free, Moderate, Place, Section, Share, Text
from partialkd.config.models import InputConfig, ModelConfig
from partialkd.config.training import PhaseConfig

Precision = Literal["fp32", "bf16"]
Dimension = Annotated[int, Field(gt=0, le=65536)]


class NoiseConfig(Section):
    """Noise on what the teacher says while the student is trained (partialkd/teacher/noise.py)."""

    sigma: Annotated[float, Field(gt=0, le=10)] = 0.1  # deviation of each number, as a part of it
    share: Share = 0.5  # of the images that get any
    # The numbers of its embeddings, or its logits over all classes (partialkd/centres/logit_noise.py), which only terms
    # of soft targets look at.
    on: Annotated[Literal["embedding", "logits"], Before("embedding")] = "embedding"


class MemberConfig(Section):
    """One of several teachers: the keys of a teacher from a file, and how much it counts."""

    source: Literal["checkpoint", "onnx"]
    path: Free[Place]
    model: ModelConfig | None = None
    input: InputConfig = InputConfig()
    embedding_dim: Dimension | None = None
    output: Text | None = None
    precision: Annotated[Precision, Before("fp32")] = "fp32"
    weight: Moderate = 1.0

    @property
    def alone(self) -> TeacherConfig:
        """The configuration of this teacher by itself."""
        own = {key: getattr(self, key) for key in type(self).model_fields if key != "weight"}
        return TeacherConfig.model_validate(own)

    @model_validator(mode="after")
    def _complete(self) -> MemberConfig:
        assert self.alone
        return self


class EnsembleInputs(Section):
    """What the networks of an ensemble expect."""

    members: tuple[InputConfig, ...]


class TeacherConfig(Section):
    """Where the teacher comes from: trained first by this run, a state_dict of our models, or an ONNX file.

    "ensemble": several from files. "records": no network, its embeddings stand in the training records
    (data.embeddings). "npz": they stand in a file.
    """

    source: Literal["none", "train", "checkpoint", "onnx", "ensemble", "records", "npz"] = "none"
    # Where files lie may change on resume: fingerprints of what is in them are compared.
    path: Free[Place | None] = None  # checkpoint (.pt, .pth, .safetensors, .h5), .onnx or .npz
    model: ModelConfig | None = None  # source = "checkpoint"; not needed for a file that describes its network
    input: InputConfig = InputConfig()  # source = "checkpoint" or "onnx"
    embedding_dim: Dimension | None = None  # source = "onnx": checked against what the file emits
    output: Text | None = None  # source = "onnx": the name of the output that is the embedding, where there are several
    ensemble: tuple[MemberConfig, ...] = ()  # source = "ensemble": two or more
    # "bf16": its network under autocast, embeddings in float32. They differ by about 1e-2, so kept ones are others.
    precision: Annotated[Precision, Before("fp32")] = "fp32"
    noise: NoiseConfig | None = None
    # In training: the image that the student sees, or the same one without data.grey and data.augment, only mirrored
    # where it is. With "clean", kept embeddings serve augmented images too.
    sees: Annotated[Literal["same", "clean"], Before("same")] = "same"
    project_to: Dimension | None = None  # one fixed orthogonal projection of embeddings and centres alike
    centres: Literal["means", "classifier"] = "means"  # of the fixed centres and of AdaDistill's start
    classifier: Free[Place | None] = (
        None  # centres = "classifier": file with the rows (C, D), or arcface_torch's folder
    )
    # text file: line k holds the class id of row k, or -1; "identity": row k is class k
    label_map: Free[Place | None] = None
    # folder that launch/embed.py made; "auto": made by the run itself, in its own folder
    cache: Free[Place | None] = None
    cache_dtype: Literal["fp32", "fp16", "bf16"] | None = None  # None: fp16 where one is made, any where one is read
    compile: Free[bool] = False  # torch.compile of its network where it runs, CUDA graphs on GPUs; differs by rounding
    accept: Free[bool] = False  # train although its accuracy on the first of evaluate.sets is below 0.7
    train: PhaseConfig | None = None  # source = "train"; without effect with another source

    @property
    def known_dim(self) -> int | None:
        """Dimension of its embeddings as far as the configuration says; None: the file does."""
        if self.source == "ensemble" and self.project_to is None:
            dims = {one.alone.known_dim for one in self.ensemble}
            return dims.pop() if len(dims) == 1 else None
        model = {"train": self.train and self.train.model, "checkpoint": self.model}.get(self.source)
        return self.project_to or (model.embedding_dim if model else self.embedding_dim)

    @property
    def embeddings_alone(self) -> bool:
        """Whether there are embeddings of the training images and no network."""
        return self.source in ("records", "npz")

    def _check_path(self) -> None:
        """A file whose ending belongs to the other source."""
        if self.path is None or self.source not in ("checkpoint", "onnx"):
            return
        endings = {"checkpoint": (".onnx",), "onnx": (".pt", ".pth", ".safetensors", ".h5", ".hdf5")}[self.source]
        other = "onnx" if self.source == "checkpoint" else "checkpoint"
        if self.path.endswith(endings):
            raise ValueError(f'source must be "{other}" for a file like {self.path}, got "{self.source}"')

    def _check_ensemble(self) -> None:
        if self.source != "ensemble":
            if self.ensemble:
                raise ValueError(f'ensemble must be left out with source = "{self.source}", got {len(self.ensemble)}')
            return
        if len(self.ensemble) < 2:
            raise ValueError(
                f'ensemble must name two teachers or more with source = "ensemble", got {len(self.ensemble)}'
            )
        for key in ("path", "model", "embedding_dim"):
            if getattr(self, key) is not None:
                raise ValueError(f'{key} must stand with each of ensemble with source = "ensemble"')
        if self.centres == "classifier":
            raise ValueError('centres must be "means" with source = "ensemble", got "classifier"')
        dims = {one.alone.known_dim for one in self.ensemble} - {None}
        if self.project_to is None and len(dims) > 1:
            found = ", ".join(map(str, sorted(dims, key=str)))
            raise ValueError(f"project_to is required where embeddings of ensemble differ in length, got {found}")

    @model_validator(mode="after")
    def _complete(self) -> TeacherConfig:
        needs = {"train": ["train"], "checkpoint": ["path", "model"], "onnx": ["path", "embedding_dim"], "none": []}
        needs["records"], needs["ensemble"], needs["npz"] = [], [], ["path"]
        self._check_ensemble()
        self._check_path()
        if self.path is not None and self.path.endswith(".safetensors"):
            needs["checkpoint"] = ["path"]  # such a file may describe its network itself
        for key in needs[self.source]:
            if getattr(self, key) is None:
                raise ValueError(f'{key} is required with source = "{self.source}"')
        for key in ("project_to", "cache") if self.embeddings_alone else ():
            if getattr(self, key) is not None:
                raise ValueError(f'{key} must be left out with source = "{self.source}", got {getattr(self, key)!r}')
        if self.compile and self.source not in ("train", "checkpoint"):
            raise ValueError(f'compile must be false with source = "{self.source}", got true')
        if self.precision != "fp32" and self.source not in ("train", "checkpoint"):
            where = "; each of ensemble has its own" if self.source == "ensemble" else ""
            raise ValueError(f'precision must be "fp32" with source = "{self.source}"{where}, got "{self.precision}"')
        if self.output is not None and self.source != "onnx":
            raise ValueError(f'output must be left out with source = "{self.source}", got {self.output!r}')
        if self.cache is not None and self.source == "none":
            raise ValueError(f'cache must be left out with source = "none", got {self.cache!r}')
        if self.centres == "classifier" and self.source != "train":  # a teacher trained here brings its own
            for key in ("classifier", "label_map"):
                if getattr(self, key) is None:
                    raise ValueError(f'{key} is required with centres = "classifier"')
        return self
