"""Augmentations: each operation against Pillow, NumPy or colorsys; what is drawn; the same in loaders and on ranks."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from partialkd.config import AugmentConfig, DataConfig
from partialkd.data import pixel_operations as operations
from partialkd.data.augment import NAMES, RAND, Step, apply, augments, draw
from partialkd.data.decode import encode_jpeg
from partialkd.data.layout import pack_records
from partialkd.data.loader import open_loader
from partialkd.data.order import Plan, SequentialPlan, TrainingPlan
from partialkd.data.sources import open_source

SIZE, RECORDS = 32, 40
EVERYTHING = AugmentConfig(
    crop=0.4, rand=0.6, rand_ops=3, rand_magnitude=0.8, colour=0.4, hue=0.2, blur=0.4, low_resolution=0.4, occlusion=0.4
)
MANY = np.arange(20_000)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Pictures of 32 pixels are not worth waiting for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def photo(seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise, (S, S, 3) uint8."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((SIZE, SIZE), Image.BICUBIC)
    return (np.asarray(small).astype(int) + rng.integers(-8, 9, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)


def planes(*images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2)).float()


def done(operation: str, image: np.ndarray, **values: float) -> np.ndarray:
    """The operation on one image -> (S, S, 3) float32."""
    changed = getattr(operations, operation)(planes(image), **{key: np.array([v]) for key, v in values.items()})
    return changed[0].permute(1, 2, 0).numpy()


def float_planes(image: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Pillow's geometry on each channel as 32-bit float, unrounded."""
    channels = [change(Image.fromarray(image[..., c].astype(np.float32), "F")) for c in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=2)


# -------------------------------------------------------------------------------------------- each operation


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ("operation", "enhance", "tolerance"),
    [
        ("brightness", ImageEnhance.Brightness, 1.0),
        ("contrast", ImageEnhance.Contrast, 1.8),  # Pillow's mean is of rounded levels, its result cut off
        ("saturation", ImageEnhance.Color, 1.8),
        ("sharpness", ImageEnhance.Sharpness, 1.8),
    ],
)
def test_enhancements_are_pillows(operation: str, enhance: Any, tolerance: float, factor: float) -> None:
    theirs = np.asarray(enhance(Image.fromarray(photo())).enhance(factor)).astype(float)
    np.testing.assert_allclose(done(operation, photo(), factor=factor), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("bits", [1, 4, 6, 8])
def test_posterise_is_pillows(bits: int) -> None:
    theirs = np.asarray(ImageOps.posterize(Image.fromarray(photo()), bits))
    np.testing.assert_array_equal(done("posterise", photo(), bits=bits), theirs)


@pytest.mark.parametrize("threshold", [0, 77, 200, 256])
def test_solarise_is_pillows(threshold: int) -> None:
    theirs = np.asarray(ImageOps.solarize(Image.fromarray(photo()), threshold))
    np.testing.assert_array_equal(done("solarise", photo(), threshold=threshold), theirs)


def test_autocontrast_is_pillows() -> None:
    image = photo() // 3 + 40
    image[..., 2] = 90  # one level: stays
    theirs = np.asarray(ImageOps.autocontrast(Image.fromarray(image))).astype(float)
    np.testing.assert_allclose(done("autocontrast", image), theirs, rtol=0, atol=1.001)  # Pillow cuts off


@pytest.mark.parametrize("turns", [-0.4, -0.1, 0.0, 0.02, 0.3, 0.5])
def test_hue_is_that_of_hsv(turns: float) -> None:
    image = photo()
    image[0, :4] = [[9, 9, 9], [0, 0, 0], [255, 255, 255], [200, 200, 10]]
    got = done("hue", image, turns=turns)
    for at in np.ndindex(8, SIZE):
        h, s, v = colorsys.rgb_to_hsv(*(image[at] / 255))
        np.testing.assert_allclose(got[at], 255 * np.array(colorsys.hsv_to_rgb((h + turns) % 1, s, v)), atol=2e-2)


def test_colour_is_its_four_parts_in_order() -> None:
    parts = photo().astype(np.float32)
    for operation, values in (
        ("brightness", {"factor": 1.1}), ("contrast", {"factor": 0.7}), ("saturation", {"factor": 1.4}),
        ("hue", {"turns": 0.1}),
    ):  # fmt: skip
        parts = done(operation, parts, **values)
    got = done("colour", photo(), brightness_factor=1.1, contrast_factor=0.7, saturation_factor=1.4, turns=0.1)
    np.testing.assert_array_equal(got, parts)


@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.0, 2.3])
def test_blur_is_a_gaussian_over_repeated_edges(sigma: float) -> None:
    radius = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-9)) ** 2)
    expected = np.pad(photo().astype(np.float64), ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    for axis in (0, 1):
        kernel = weights / weights.sum()
        expected = np.apply_along_axis(lambda line, kernel=kernel: np.convolve(line, kernel, "valid"), axis, expected)
    np.testing.assert_allclose(done("blur", photo(), sigma=sigma), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.33, 0.8, 1.0])
def test_low_resolution_is_pillows_resize_down_and_up(share: float) -> None:
    side = round(share * SIZE)
    theirs = float_planes(
        photo(), lambda x: x.resize((side, side), Image.BILINEAR).resize((SIZE, SIZE), Image.BILINEAR)
    )
    np.testing.assert_allclose(done("low_resolution", photo(), share=share), theirs, rtol=0, atol=1e-2)


@pytest.mark.parametrize("window", [(0.0, 0.0, 1.0, 1.0), (0.1, 0.25, 0.6, 0.7), (0.4, 0.0, 0.5, 1.0)])
def test_crop_is_pillows_window(window: tuple[float, ...]) -> None:
    top, left, height, width = window
    box = tuple(SIZE * edge for edge in (left, top, left + width, top + height))
    theirs = float_planes(photo(), lambda x: x.transform((SIZE, SIZE), Image.EXTENT, box, Image.BILINEAR))
    got = done("crop", photo(), top=top, left=left, height=height, width=width)
    np.testing.assert_allclose(got, theirs, rtol=0, atol=1e-2)


def test_crop_over_the_edge_repeats_it() -> None:
    got = done("crop", photo(), top=0.0, left=-8 / SIZE, height=1.0, width=1.0)  # 8 pixels to the right
    expected = np.pad(photo(), ((0, 0), (8, 0), (0, 0)), mode="edge")[:, :SIZE]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("operation", "values", "matrix"),
    [  # Pillow: source x = a x + b y + c, source y = d x + e y + f, from the middle here
        ("rotate", {"degrees": 90.0}, (0, -1, 0, 1, 0, 0)),
        ("rotate", {"degrees": -20.0}, None),
        ("shear_x", {"shear": 0.2}, (1, 0.2, 0, 0, 1, 0)),
        ("shear_y", {"shear": -0.3}, (1, 0, 0, -0.3, 1, 0)),
        ("translate_x", {"share": 0.25}, (1, 0, -0.25 * SIZE, 0, 1, 0)),
        ("translate_y", {"share": -0.125}, (1, 0, 0, 0, 1, 0.125 * SIZE)),
    ],
)
def test_geometry_is_pillows(operation: str, values: dict[str, float], matrix: tuple[float, ...] | None) -> None:
    """Where Pillow looks inside the image; it leaves what is outside black, here edges repeat."""
    middle = SIZE / 2

    def change(x: Image.Image) -> Image.Image:
        if matrix is None:
            return x.rotate(values["degrees"], Image.BILINEAR)
        a, b, c, d, e, f = matrix
        shifted = (a, b, c + middle - (a + b) * middle, d, e, f + middle - (d + e) * middle)
        return x.transform((SIZE, SIZE), Image.AFFINE, shifted, Image.BILINEAR)

    inside = float_planes(np.full_like(photo(), 100), change) > 99.9
    got, theirs = done(operation, photo(), **values), float_planes(photo(), change)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(got[inside], theirs[inside], rtol=0, atol=2e-2)
    np.testing.assert_allclose(done(operation, np.full_like(photo(), 100), **values), 100, rtol=0, atol=1e-3)


def test_translation_goes_right_and_down() -> None:
    right, down = done("translate_x", photo(), share=0.25), done("translate_y", photo(), share=0.25)
    np.testing.assert_allclose(right[:, 8:], photo()[:, :-8], rtol=0, atol=1e-2)
    np.testing.assert_allclose(down[8:], photo()[:-8], rtol=0, atol=1e-2)


def test_occlusion_covers_its_rectangle() -> None:
    got = done("occlusion", photo(), top=0.25, left=0.5, height=0.25, width=0.375, level=140.0)
    expected = photo().astype(np.float32)
    expected[8:16, 16:28] = 140
    np.testing.assert_array_equal(got, expected)


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


def test_augments_names_what_is_in_use() -> None:
    assert augments(DataConfig(path="x", flip=True)) == ()
    assert augments(DataConfig(path="x", grey=0.1, augment=AugmentConfig(occlusion=0.1, crop=1))) == (
        "grey",
        "crop",
        "occlusion",
    )
    assert augments(DataConfig(path="x", augment=EVERYTHING)) == NAMES


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
        mine = plan or TrainingPlan(RECORDS, 8, 1, rank, world_size, seed=4, flip=True, grey=0.2)
        for batch in open_loader(data, open_source(data), mine, torch.device("cpu")).epoch(1):
            found.update(zip(batch.records.tolist(), batch.images, strict=True))
    return found


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
