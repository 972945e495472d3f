"""Which images, how they are read, and in what order."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from partialkd.config.base import Count, Positive, Probability, Section, Share


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


class AugmentConfig(Section):
    """For training batches: the share of images that each operation changes, and its strength. All are off by default.

    In this order, after grey and flip. What each does exactly: partialkd/data/augment.py.
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
    source: Literal["recordio", "folder", "synthetic"] = "recordio"
    path: str  # folder with train.rec, train.idx, property; or <identity>/<image> files
    image_size: Annotated[int, Field(ge=16, le=512)] = 112
    resize: bool = False  # False: a record of another size is an error
    loader: Literal["dali", "jpeg"] = "dali"
    workers: Positive = 2  # decoding threads a rank
    flip: bool = True  # mirror half of the images
    grey: Probability = 0.0  # share of images turned grey (real photographs evaluated in grey)
    augment: AugmentConfig = AugmentConfig()
    prepare: Annotated[ProceduralConfig | ArchiveConfig, Field(discriminator="kind")] | None = None
    synthetic_identities: Positive = 1000  # source = "synthetic" only
    synthetic_images: Positive = 10000
