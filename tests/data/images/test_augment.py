"""Augmentations: what is drawn for a record; the same pixels in both loaders, on any number of ranks; the picture."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers.photos import SIZE, photo, planes
from helpers.places import ROOT
from partialkd.config import AugmentConfig, DataConfig
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.images.augment import NAMES, RAND, Step, apply, draw
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.plan import BatchCut, Plan, SequentialPlan, TrainingPlan
from partialkd.data.sources.open import open_source

RECORDS = 40
EVERYTHING = AugmentConfig(
    crop=0.4, rand=0.6, rand_ops=3, rand_magnitude=0.8, colour=0.4, hue=0.2, blur=0.4, low_resolution=0.4, occlusion=0.4
)
MANY = np.arange(20_000)


pytestmark = pytest.mark.usefixtures("one_thread")


def test_images_are_independent_of_the_batch() -> None:
    """Each alone or among others, in any order: the same bits."""
    images = planes(*(photo(seed) for seed in range(12))).sub_(127.5).div_(127.5)
    indices = np.arange(100, 112)
    together = images.clone()
    apply(together, draw(EVERYTHING, 5, 0, indices))
    for order in (np.array([3]), np.array([11, 0, 7]), np.arange(12)[::-1].copy()):
        part = images[torch.from_numpy(order)].clone()
        apply(part, draw(EVERYTHING, 5, 0, indices[order]))
        torch.testing.assert_close(part, together[torch.from_numpy(order)], rtol=0, atol=1e-6)
    assert not torch.equal(together, images)


def test_no_strength_changes_nothing() -> None:
    none = AugmentConfig(
        crop=1, crop_least=1, crop_shift=0, rand=1, rand_ops=8, rand_magnitude=0, colour=1, brightness=0, contrast=0,
        saturation=0, hue=0, blur=1, blur_sigma=1e-3, low_resolution=1, low_resolution_least=1,
    )  # fmt: skip
    images = planes(*(photo(seed) for seed in range(40))).sub_(127.5).div_(127.5)
    steps = [step for step in draw(none, 1, 0, np.arange(40)) if step.operation != "autocontrast"]  # has no strength
    assert {step.operation for step in steps} >= {"crop", "colour", "blur", "low_resolution", *RAND} - {
        "identity",
        "autocontrast",
    }
    changed = images.clone()
    apply(changed, steps)
    torch.testing.assert_close(changed, images, rtol=0, atol=1e-4)


# ----------------------------------------------------------------------------------------------- what is drawn


def one(name: str, **keys: float) -> Step:
    (step,) = draw(AugmentConfig(**{name: 1.0, **keys}), 3, 0, MANY)
    assert (step.operation, len(step.rows)) == (name, len(MANY))
    return step


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    """Kolmogorov's distance at 20000 values: 0.0138 would be exceeded once in a thousand."""
    shares = np.sort((values - low) / (high - low))
    assert shares[0] >= 0
    assert shares[-1] <= 1
    assert np.abs(shares - (np.arange(len(shares)) + 0.5) / len(shares)).max() < 0.0138


def test_nothing_is_drawn_without_a_share_or_a_seed() -> None:
    assert draw(AugmentConfig(), 3, 0, MANY) == []
    assert draw(EVERYTHING, None, 0, MANY) == []
    assert draw(EVERYTHING, 3, 0, MANY[:0]) == []


def test_the_configuration_names_what_is_in_use() -> None:
    assert DataConfig(path="x", flip=True).altering == []
    data = DataConfig(path="x", grey=0.1, augment=AugmentConfig(occlusion=0.1, crop=1))
    assert data.altering == ["grey", "augment.crop", "augment.occlusion"]
    assert DataConfig(path="x", augment=EVERYTHING).altering == [f"augment.{name}" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_the_share_of_images(name: str) -> None:
    steps = draw(AugmentConfig(**{name: 0.3, "rand_ops": 8}), 3, 0, MANY)
    changed = np.unique(np.concatenate([step.rows for step in steps]))
    assert len(changed) / len(MANY) == pytest.approx(0.3, abs=0.015)


def test_parameters_are_uniform_and_independent() -> None:
    crop = one("crop", crop_least=0.6, crop_shift=0.1).values
    assert_uniform(crop["height"], 0.6, 1)
    assert_uniform(crop["width"], 0.6, 1)
    for start, length in (("top", "height"), ("left", "width")):
        reach = 0.1 * crop[length]
        assert_uniform((crop[start] + reach) / (1 - crop[length] + 2 * reach), 0, 1)
    colour = one("colour", brightness=0.3, contrast=0.2, saturation=0.5, hue=0.1).values
    for key, most in (("brightness", 0.3), ("contrast", 0.2), ("saturation", 0.5)):
        assert_uniform(colour[f"{key}_factor"], 1 - most, 1 + most)
    assert_uniform(colour["turns"], -0.1, 0.1)
    assert_uniform(one("blur", blur_sigma=2.5).values["sigma"], 0, 2.5)
    assert_uniform(one("low_resolution", low_resolution_least=0.4).values["share"], 0.4, 1)
    hole = one("occlusion", occlusion_most=0.3).values
    assert_uniform(hole["height"] * hole["width"], 0, 0.3)
    assert_uniform(np.log2(hole["height"] / hole["width"]), -1, 1)
    assert_uniform(hole["top"] / (1 - hole["height"]), 0, 1)
    assert_uniform(hole["level"], 0, 255)
    hole["top"], hole["left"] = hole["top"] / (1 - hole["height"]), hole["left"] / (1 - hole["width"])
    hole["area"], hole["aspect"] = hole["height"] * hole["width"], hole.pop("height") / hole.pop("width")
    related = np.abs(np.corrcoef(np.stack([*crop.values(), *colour.values(), *hole.values()])) - np.eye(13))
    related[[0, 2, 1, 3], [2, 0, 3, 1]] = 0  # where a window starts depends on its length
    assert related.max() < 0.03  # a ten-thousandth of pairs would exceed 0.0275


def test_rand_draws_its_operations_alike() -> None:
    steps = draw(AugmentConfig(rand=1, rand_ops=2, rand_magnitude=0.5), 3, 0, MANY)
    assert len(steps) == 2 * (len(RAND) - 1)
    for number, name in enumerate(name for name in RAND if name != "identity"):
        for step in (steps[number], steps[number + len(RAND) - 1]):
            assert step.operation == name
            assert len(step.rows) / len(MANY) == pytest.approx(1 / len(RAND), abs=0.008)
    by_name = {step.operation: step.values for step in steps}
    assert set(by_name["rotate"]["degrees"]) == {-15, 15}
    assert (by_name["rotate"]["degrees"] > 0).mean() == pytest.approx(0.5, abs=0.06)
    assert set(by_name["translate_x"]["share"]) == {-0.15, 0.15}
    assert set(by_name["sharpness"]["factor"]) == {0.55, 1.45}
    assert set(by_name["posterise"]["bits"]) == {6}
    assert set(by_name["solarise"]["threshold"]) == {128}


def test_choices_change_with_epoch_and_seed_only() -> None:
    def angles(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
        (step,) = draw(AugmentConfig(blur=1), seed, epoch, indices)
        return step.values["sigma"]

    base = angles(1, 0, MANY[:50])
    np.testing.assert_array_equal(angles(1, 0, MANY[10:20]), base[10:20])
    assert not np.intersect1d(angles(1, 1, MANY[:50]), base).size
    assert not np.intersect1d(angles(2, 0, MANY[:50]), base).size


# --------------------------------------------------------------------------------------------- in the loaders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("augment") / "set"
    pack_records(path, ((encode_jpeg(photo(n)), n // 8) for n in range(RECORDS)), RECORDS // 8, SIZE)
    return path


def pixels_by_record(
    folder: Path, loader: str, world_size: int, config: AugmentConfig = EVERYTHING, plan: Plan | None = None
) -> dict[int, Tensor]:
    data = DataConfig(path=str(folder), loader=loader, image_size=SIZE, augment=config, grey=0.2)  # type: ignore[arg-type]
    found = {}
    for rank in range(world_size):
        mine = plan or TrainingPlan(RECORDS, BatchCut(8, 1, rank, world_size), seed=4, flip=True, grey=0.2)
        for batch in open_loader(data, open_source(data), mine, torch.device("cpu")).epoch(1):
            found.update(zip(batch.records.tolist(), batch.images, strict=True))
    return found


@pytest.mark.slow
def test_loaders_and_world_sizes_give_the_same_pixels(folder: Path) -> None:
    """Against the definition too: the plain image of the record, then what `draw` says."""
    plain = pixels_by_record(folder, "jpeg", 1, AugmentConfig())
    found = [pixels_by_record(folder, loader, size) for loader in ("jpeg", "dali") for size in (1, 2)]
    for record, image in plain.items():
        expected = image[None].clone()
        apply(expected, draw(EVERYTHING, 4, 1, np.array([record])))
        for one_way in found:
            torch.testing.assert_close(one_way[record], expected[0], rtol=0, atol=1e-4)
    assert len(plain) == RECORDS
    assert sum(not torch.equal(found[0][record], image) for record, image in plain.items()) > RECORDS / 2
    for record, image in found[0].items():
        torch.testing.assert_close(found[1][record], image, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loader", ["jpeg", "dali"])
def test_a_sequential_pass_is_not_augmented(loader: str, folder: Path) -> None:
    plan = SequentialPlan(RECORDS, 7, 0, 1)
    with_all = pixels_by_record(folder, loader, 1, EVERYTHING, plan)
    without = pixels_by_record(folder, loader, 1, AugmentConfig(), plan)
    assert all(torch.equal(with_all[record], image) for record, image in without.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    images = planes(*(photo(seed) for seed in range(40))).sub_(127.5).div_(127.5)
    steps = draw(EVERYTHING, 5, 0, np.arange(40))
    on_cuda = images.cuda()
    apply(on_cuda, steps)
    apply(images, steps)
    assert ((on_cuda.cpu() - images).abs() < 1e-3).float().mean() > 0.99


def test_the_picture_of_the_documentation_can_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ROOT / "docs" / "draw_augmentations.py"
    out = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [str(script), "--out", str(out)])
    runpy.run_path(str(script), run_name="__main__")
    with Image.open(out) as drawn, Image.open(script.with_name("augmentations.png")) as kept:
        new, old = (np.asarray(picture.convert("RGB")).astype(int) for picture in (drawn, kept))
    assert new.shape == old.shape
    assert (np.abs(new - old) <= 2).mean() > 0.99  # the one in the repository is of this version
    assert script.with_name("augmentations.png").stat().st_size < 300_000
