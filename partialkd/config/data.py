"""Which images, how they are read, and in what order."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from partialkd.config.base import Count, Free, Moderate, Place, Positive, Probability, Sampler, Section, Share


class ProceduralConfig(Section):
    """Parametric face drawings, made once into `data.path`: training records and a verification set of others."""

    kind: Literal["procedural"]
    identities: Annotated[int, Field(ge=2, le=10**9)] = 400
    images_per_identity: Annotated[int, Field(ge=2, le=10**6)] = 24
    held_out_identities: Annotated[int, Field(ge=2, le=10**9)] = 120
    pairs: Annotated[int, Field(ge=10, le=10**9, multiple_of=2)] = 3000  # half of one person, half of two
    seed: Count = 0


class ArchiveConfig(Section):
    """Real images: `<identity>/<image>` in a .tar.gz or folder, packed once into `data.path`."""

    kind: Literal["archive"]
    # Where files lie may change on resume: what is in them is compared.
    images: Free[Place]  # archive or folder of the training identities
    exclude_identities: Free[Place | None] = None  # text file, one identity per line: left out of training
    pairs_images: Free[Place | None] = None  # archive or folder of the evaluated images
    pairs: Free[Place | None] = None  # CSV `a,b,same` in fold order, paths inside pairs_images
    max_identities: Positive | None = None
    min_images: Positive = 1  # identities with fewer are left out
    max_pairs: Positive | None = None  # evenly from every fold; for short runs


# Formats of a data set (docs/data.md has the table); data/sources/open.py opens each.
PartSource = Literal["recordio", "im2rec", "lmdb", "arrow", "parquet", "webdataset", "folder"]


class PartConfig(Section):
    """One of several data sets that a run reads as one."""

    path: Free[Place]
    source: PartSource = "recordio"
    weight: Moderate = 1.0  # an epoch reads round(weight x records) of it; 2: every record twice
    label_offset: Count | None = None  # added to its class ids; None: the first number after the parts before it
    label_map: Free[Place | None] = None  # text file `identity<TAB>new id`, -1: left out
    exclude_identities: Free[Place | None] = None  # text file, one identity per line: left out
    exclude_images: Free[Place | None] = None  # text file `image<TAB>identity`, images counted from 0: left out


class AugmentConfig(Section):
    """For training batches: the share of images that each operation changes, and its strength. All are off by default.

    In this order, after grey and flip. What each does exactly: partialkd/data/images/augment.py.
    """

    crop: Probability = 0.0  # a window of the image, stretched to its size
    crop_least: Share = 0.8  # least share of the height, and of the width, that the window has
    crop_shift: Annotated[float, Field(ge=0, le=0.5)] = 0.05  # of the window, how far it may reach over the edges
    rand: Probability = 0.0  # `rand_ops` operations out of a fixed list (as RandAugment)
    rand_ops: Annotated[int, Field(ge=1, le=8)] = 2
    rand_magnitude: Probability = 0.3  # of every operation's full strength
    colour: Probability = 0.0  # brightness, contrast, saturation and hue, together
    brightness: Probability = 0.2  # factor between 1 - this and 1 + this
    contrast: Probability = 0.2  # likewise, about the mean
    saturation: Probability = 0.2  # likewise, about grey
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.02  # turns of the colour circle, to either side
    blur: Probability = 0.0  # Gaussian
    blur_sigma: Annotated[float, Field(gt=0, le=8)] = 1.5  # at most; pixels of the final image
    low_resolution: Probability = 0.0  # reduced and enlarged again
    low_resolution_least: Share = 0.25  # least share of the side left in between
    occlusion: Probability = 0.0  # a rectangle of one grey level
    occlusion_most: Annotated[float, Field(gt=0, le=0.5)] = 0.2  # largest share of the area covered


class DataConfig(Section):
    """The training images: where they are, how they are read, in what order, and how they are altered."""

    source: Literal[PartSource, "synthetic"] = "recordio"
    # Where files lie may change on resume: the fingerprint of what is in them is compared.
    path: Free[Place] = ""  # file or folder; what stands there for each source: docs/data.md
    parts: tuple[PartConfig, ...] = ()  # several data sets instead of the one in `path`
    shared_identities: bool = False  # parts may have class ids in common: the same persons
    label_map: Free[Place | None] = None  # without parts: as in a part
    exclude_identities: Free[Place | None] = None  # without parts: as in a part
    exclude_images: Free[Place | None] = None  # without parts: as in a part
    min_images: Positive = 1  # identities with fewer, over all parts, are left out
    # D: records carry D floats of a teacher's embedding, then the class id
    embeddings: Annotated[int, Field(gt=0, le=65536)] | None = None
    index_cache: Free[Place | None] = None  # folder for parsed indices of data, and for images out of Parquet
    sampler: Sampler = "shuffle"
    images_per_identity: Annotated[int, Field(ge=2, le=10**6)] = 4  # pk, half_pk: K; P = (half of) global_batch / K
    shuffle: Literal["global", "blocks"] = "global"  # blocks: reads in long runs, for spinning disks and network files
    block_records: Positive = 256  # blocks: consecutive records read together
    group_blocks: Positive = 256  # blocks: blocks whose records are mixed; their bytes should fit in memory twice
    image_size: Annotated[int, Field(ge=16, le=512)] = 112
    resize: bool = False  # False: a record of another size is an error
    loader: Free[Literal["jpeg", "dali"]] = "jpeg"  # docs/data.md has the figures of both
    workers: Free[Annotated[int, Field(gt=0, le=1024)]] = 2  # decoding threads per rank
    on_corrupt: Free[Literal["stop", "skip"]] = "stop"  # at an unreadable image; skip: another record takes its place
    max_corrupt: Free[Count] = 100  # skip: different unreadable records a rank may meet in a phase; one more ends it
    flip: bool = True  # mirror half of the images
    grey: Probability = 0.0  # share of images turned grey (real photographs evaluated in grey)
    augment: AugmentConfig = AugmentConfig()
    prepare: Annotated[ProceduralConfig | ArchiveConfig, Field(discriminator="kind")] | None = None
    synthetic_identities: Positive = 1000  # source = "synthetic" only
    synthetic_images: Positive = 10000

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if not self.parts and "path" not in self.model_fields_set:
            raise ValueError("path required key is missing")
        if self.parts:
            for key in ("source", "prepare", "label_map", "exclude_identities", "exclude_images"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} must be left out beside data.parts, got {getattr(self, key)!r}")
        if self.sampler != "shuffle":
            if self.shuffle != "global":
                raise ValueError(f'shuffle must be "global" with data.sampler = "{self.sampler}", got "{self.shuffle}"')
            if any(part.weight != 1 for part in self.parts):
                weights = [part.weight for part in self.parts]
                raise ValueError(f'sampler must be "shuffle" where parts have weights {weights}, got "{self.sampler}"')
        others = sorted({part.source for part in self.parts}) if self.parts else [self.source]
        if self.embeddings and set(others) != {"recordio"}:
            raise ValueError(f"embeddings must be left out where the images come from {others}, got {self.embeddings}")
        if self.source == "synthetic" and self.filtered:
            raise ValueError('source must name files where identities are left out, got "synthetic"')
        return self

    @property
    def altering(self) -> list[str]:
        """Keys that make images other than they are in the files, or their mirror: what no kept embedding covers."""
        shares = [name for name, field in AugmentConfig.model_fields.items() if field.default == 0.0]
        return ["grey"] * (self.grey > 0) + [f"augment.{name}" for name in shares if getattr(self.augment, name) > 0]

    @property
    def filtered(self) -> bool:
        """Whether class ids or images of the files are not those of training: parts, a map, or some left out."""
        lists = self.label_map or self.exclude_identities or self.exclude_images
        return bool(self.parts or lists or self.min_images > 1)
